"""Tiny models with random weights, made on the spot: nothing is tuned to them and nothing is fetched."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

LETTERS = "abcdefghijklmnopqrstuvwxyzäöüß0123456789.,!?'-"
WORDS = ["the", "not", "good", "bad", "##ing", "##ed", "tea", "room", "never", "was"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = {token: i for i, token in enumerate([*SPECIAL, *WORDS, *LETTERS, *("##" + letter for letter in LETTERS)])}
MAX_TOKENS = 64

BERT_LIKE = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
ENCODER = {"vocab_size": len(VOCABULARY), "pad_token_id": 0}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def tokenizer(framed: bool = True) -> PreTrainedTokenizerFast:
    """`framed`: with [CLS], [SEP] and padding as BERT has; otherwise bare, with an end token alone, as GPT-2."""
    core = Tokenizer(WordPiece(VOCABULARY, unk_token="[UNK]"))
    core.normalizer = BertNormalizer()
    core.pre_tokenizer = BertPreTokenizer()
    if not framed:
        return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[SEP]", model_max_length=MAX_TOKENS)
    single, pair = BERT_LIKE
    core.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=MAX_TOKENS,
    )


def bert(**options) -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(**ENCODER, **SMALL, max_position_embeddings=MAX_TOKENS, **({"num_labels": 3} | options))
    )


def distilbert() -> PreTrainedModel:
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    return DistilBertForSequenceClassification(
        DistilBertConfig(**ENCODER, **sizes, max_position_embeddings=MAX_TOKENS, num_labels=3)
    )


def roberta() -> PreTrainedModel:
    # RoBERTa's positions begin behind the padding id, so that its table has more of them than a text may have tokens
    return RobertaForSequenceClassification(
        RobertaConfig(**ENCODER, **SMALL, max_position_embeddings=MAX_TOKENS + 2, type_vocab_size=2, num_labels=3)
    )


def gpt2() -> PreTrainedModel:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": MAX_TOKENS}
    config = GPT2Config(vocab_size=len(VOCABULARY), **sizes, num_labels=3, eos_token_id=3, bos_token_id=3)
    return GPT2ForSequenceClassification(config)


ARCHITECTURES = {"bert": bert, "distilbert": distilbert, "roberta": roberta, "gpt2": gpt2}


def save(folder: Path, architecture: str = "bert", seed: int = 0, spread: float = 20.0, **options) -> Path:
    """Save a model and its tokenizer; `spread` widens the head's weights, so that scores clearly differ."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[architecture](**options)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("classifier", "score")):
                weight.mul_(spread)
    model.save_pretrained(folder)
    tokenizer(framed=architecture != "gpt2").save_pretrained(folder)
    return folder
