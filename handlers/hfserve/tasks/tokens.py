"""A model's own tokenizer, and how many tokens the model takes."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from hfserve.config import HandlerConfig
from hfserve.errors import ConfigError


def load_tokenizer(model_dir: Path, config: HandlerConfig) -> PreTrainedTokenizerBase:
    """Load the model's own tokenizer from its folder alone, able to pad. Raises ConfigError where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_dir, local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # broken files raise whatever the code that reads them happens to
        raise ConfigError(f"The model folder has no tokenizer that loads: {type(error).__name__}: {error}") from error
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not any((model_dir / name).exists() for name in files):  # transformers makes up an empty one without a word
        raise ConfigError("The model folder has no tokenizer: save the model's own beside it with save_pretrained.")
    if "XLNet" not in type(tokenizer).__name__:  # whose positions are relative, and whose [CLS] is the last token
        tokenizer.padding_side = "right"  # else a row's positions would depend on how long its neighbours are
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError("The tokenizer has neither a padding nor an end token: set pad_token in its files.")
    return tokenizer


def token_limit(model: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, asked: int | None) -> int:
    """Return how many tokens a row may have: the least of what the model, its tokenizer and `max_length:` allow.

    Raises ConfigError where `asked` is more than the model can take or nothing sets a limit.
    """
    positions = getattr(model, "max_position_embeddings", None)
    limits = [n for n in (positions, tokenizer.model_max_length) if n and 0 < n < 1_000_000]
    if asked is None and not limits:
        raise ConfigError("The model sets no limit of tokens: set handler.max_length.")
    if asked is not None and limits and asked > min(limits):
        raise ConfigError(f"handler.max_length is {asked}, but the model takes {min(limits)} tokens: lower it.")
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2  # below it a tokenizer cuts nothing, without a word
    if asked is not None and asked < least:
        raise ConfigError(
            f"handler.max_length is {asked}: give {least} or more, room for a word beside special tokens."
        )
    return asked or min(limits)
