"""Tiny models with random weights, made on the spot: nothing is tuned to them and nothing is fetched."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

LETTERS = "abcdefghijklmnopqrstuvwxyzäöüß0123456789.,!?'-"
WORDS = ["the", "not", "good", "bad", "##ing", "##ed", "tea", "room", "never", "was"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = {token: i for i, token in enumerate([*SPECIAL, *WORDS, *LETTERS, *("##" + letter for letter in LETTERS)])}
MAX_TOKENS = 64

BERT_LIKE = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
ENCODER = {"vocab_size": len(VOCABULARY), "pad_token_id": 0}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def byte_level(model_max_length: int = MAX_TOKENS) -> PreTrainedTokenizerFast:
    """As GPT-2's: a token for each byte and some words, whose offsets count the blank before a word to it."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = [("Ġ", letter) for letter in "aliPt"]
    vocabulary = {token: i for i, token in enumerate(["<pad>", *alphabet, *("".join(pair) for pair in merges)])}
    core = Tokenizer(BPE(vocabulary, merges))
    core.pre_tokenizer = ByteLevel(add_prefix_space=False)
    core.decoder = ByteLevelDecoder()
    core.post_processor = ByteLevelProcessor(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", model_max_length=model_max_length)


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


LABELS = {
    "sequence_classification": {},
    "token_classification": {"num_labels": 5, "id2label": dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))},
    "question_answering": {"num_labels": 2},
    "text_generation": {},
}
HEADS = {
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "text_generation": AutoModelForCausalLM,
}


def bert(**options) -> PretrainedConfig:
    return BertConfig(**ENCODER, **SMALL, max_position_embeddings=MAX_TOKENS, **({"num_labels": 3} | options))


def distilbert(**options) -> PretrainedConfig:
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    return DistilBertConfig(**ENCODER, **sizes, max_position_embeddings=MAX_TOKENS, **({"num_labels": 3} | options))


def roberta(**options) -> PretrainedConfig:
    # RoBERTa's positions begin behind the padding id, so that its table has more of them than a text may have tokens
    sizes = {"max_position_embeddings": MAX_TOKENS + 2, "type_vocab_size": 2}
    return RobertaConfig(**ENCODER, **SMALL, **sizes, **({"num_labels": 3} | options))


def gpt2(**options) -> PretrainedConfig:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": MAX_TOKENS, "eos_token_id": 3, "bos_token_id": 3}
    return GPT2Config(**sizes, **({"vocab_size": len(VOCABULARY), "num_labels": 3} | options))


def llama(**options) -> PretrainedConfig:
    special = {"eos_token_id": 3, "bos_token_id": 3, "pad_token_id": None}
    return LlamaConfig(vocab_size=len(VOCABULARY), **SMALL, max_position_embeddings=MAX_TOKENS, **special, **options)


ARCHITECTURES = {"bert": bert, "distilbert": distilbert, "roberta": roberta, "gpt2": gpt2, "llama": llama}
BARE = ("gpt2", "llama")  # no [CLS] and [SEP] around a text, and no padding token
USUAL = {"text_generation": "gpt2"}  # the architecture where a test does not care; bert for the others


def build(architecture: str, head: str = "sequence_classification", **options) -> PreTrainedModel:
    return HEADS[head].from_config(ARCHITECTURES[architecture](**LABELS[head], **options))


def save(
    folder: Path,
    architecture: str | None = None,
    seed: int = 0,
    spread: float = 20.0,
    head: str = "sequence_classification",
    **options,
) -> Path:
    """Save a model and its tokenizer; `spread` widens the head's weights, so that scores clearly differ."""
    architecture = architecture or USUAL.get(head, "bert")
    torch.manual_seed(seed)
    model = build(architecture, head, **options)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("classifier", "score", "qa_outputs")):
                weight.mul_(spread)
            if head == "text_generation" and weight.dim() > 1:
                weight.mul_(8)  # else every prompt goes on alike
    model.save_pretrained(folder)
    tokenizer(framed=architecture not in BARE).save_pretrained(folder)
    return folder
