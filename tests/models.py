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
    AlbertConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
    XLNetConfig,
    XLNetTokenizer,
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


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """An end token behind each text, as T5 has, whose classifier reads the last one."""
    core = tokenizer(framed=False).backend_tokenizer
    core.post_processor = TemplateProcessing(
        single="$A [SEP]", pair="$A [SEP] $B [SEP]", special_tokens=[("[SEP]", VOCABULARY["[SEP]"])]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special, model_max_length=MAX_TOKENS)


# as SentencePiece has it: a word begins with its blank, and every piece has a score; the shorter the text the better
XLNET_SPECIAL = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
XLNET_WORDS = [word[2:] if word.startswith("##") else f"▁{word}" for word in (*WORDS, *LETTERS)]
XLNET_PIECES = [
    (piece, 0.0 if piece in XLNET_SPECIAL else -1.0) for piece in (*XLNET_SPECIAL, *XLNET_WORDS, "▁", *LETTERS)
]


def xlnet_tokenizer() -> XLNetTokenizer:
    """XLNet's own class: `A <sep> <cls>`, padded on the left."""
    return XLNetTokenizer(vocab=XLNET_PIECES, do_lower_case=True, model_max_length=MAX_TOKENS)


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


def albert(**options) -> PretrainedConfig:
    sizes = {"embedding_size": 16, "max_position_embeddings": MAX_TOKENS}  # smaller than the layers behind them
    return AlbertConfig(**ENCODER, **SMALL, **sizes, **({"num_labels": 3} | options))


def electra(**options) -> PretrainedConfig:
    sizes = {"embedding_size": 16, "max_position_embeddings": MAX_TOKENS}
    return ElectraConfig(**ENCODER, **SMALL, **sizes, **({"num_labels": 3} | options))


def deberta(**options) -> PretrainedConfig:
    # as DeBERTa-v3 is set: positions enter in the attention alone
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
    v3 = {"position_biased_input": False, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    sizes = {"max_position_embeddings": MAX_TOKENS}
    return DebertaV2Config(**ENCODER, **SMALL, **sizes, **relative, **v3, **({"num_labels": 3} | options))


def xlnet(**options) -> PretrainedConfig:
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "vocab_size": len(XLNET_PIECES)}
    return XLNetConfig(**sizes, **({"num_labels": 3} | options))


def t5(**options) -> PretrainedConfig:
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    special = {"eos_token_id": VOCABULARY["[SEP]"], "decoder_start_token_id": 0}
    return T5Config(**ENCODER, **sizes, **special, **({"num_labels": 3} | options))


ARCHITECTURES = {
    "bert": bert,
    "distilbert": distilbert,
    "roberta": roberta,
    "gpt2": gpt2,
    "llama": llama,
    "albert": albert,
    "electra": electra,
    "deberta": deberta,
    "xlnet": xlnet,
    "t5": t5,
}
BARE = ("gpt2", "llama")  # no [CLS] and [SEP] around a text, and no padding token
OWN_TOKENIZER = {"xlnet": xlnet_tokenizer, "t5": t5_tokenizer}
USUAL = {"text_generation": "gpt2"}  # the architecture where a test does not care; bert for the others
WIDENED = ("classifier", "score", "qa_outputs", "logits_proj", "classification_head")


def tokenizer_of(architecture: str) -> PreTrainedTokenizerFast:
    own = OWN_TOKENIZER.get(architecture)
    return own() if own else tokenizer(framed=architecture not in BARE)


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
    """Save a model and its tokenizer; `spread` widens the head's weights, so that scores clearly differ.

    The layers before it are widened too: as they are made, all but the same comes out of them whatever goes in.
    """
    architecture = architecture or USUAL.get(head, "bert")
    torch.manual_seed(seed)
    model = build(architecture, head, **options)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if architecture == "t5":
                continue  # it is made with wide weights
            if name.startswith(WIDENED):
                weight.mul_(spread)
            elif weight.dim() > 1:
                weight.mul_(8)
    model.save_pretrained(folder)
    tokenizer_of(architecture).save_pretrained(folder)
    return folder
