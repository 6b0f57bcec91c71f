"""The tokens of an item's texts, as explanations see them: where each stands in row, text and word."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfserve.errors import Unprocessable

Row = dict[str, list[int]]

# what the tokenizers library calls the inputs of a model
INPUTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


@dataclass(frozen=True)
class Piece:
    """A token of a text.

    column: its place in the unpadded row; field: the name of its text; start, end: its characters there, blanks
    around them left out; word: the number of its word in the row.
    """

    column: int
    field: str
    start: int
    end: int
    word: int


def encoded_row(tokenizer: PreTrainedTokenizerBase, encoding: Any) -> Row:  # noqa: ANN401  # tokenizers.Encoding
    """Return the unpadded inputs of one row, by name."""
    return {name: list(getattr(encoding, INPUTS[name])) for name in tokenizer.model_input_names if name in INPUTS}


def pieces(
    encoding: Any,  # noqa: ANN401  # tokenizers.Encoding
    texts: Mapping[str, str],
    starts: Sequence[int] = (),
) -> list[Piece]:
    """Return the tokens of a row that stand for its texts; special tokens stand for none.

    texts: by name, in the order in which the tokenizer was given them.
    starts: where in the text each word begins, for a text that came split into words. Raises Unprocessable where the
    tokenizer does not say where its tokens come from.
    """
    if encoding is None:
        raise Unprocessable(
            "Explanations need a fast tokenizer, which knows where its tokens stand: save the model with one."
        )
    fields = list(texts)
    found: list[Piece] = []
    before: int | None = None
    for column, (part, word, (start, end)) in enumerate(
        zip(encoding.sequence_ids, encoding.word_ids, encoding.offsets, strict=True)
    ):
        if part is None:
            continue
        field = fields[part]
        moved = starts[word] if starts and word is not None else 0
        place = trimmed(texts[field], start + moved, end + moved)
        same = bool(found) and found[-1].field == field and _goes_on(texts[field], found, *place, word == before)
        number = found[-1].word + (not same) if found else 0
        found.append(Piece(column, field, *place, number))
        before = word
    return found


def _goes_on(text: str, found: Sequence[Piece], start: int, end: int, same_word: bool) -> bool:
    """Whether a token goes on with the word of the token before it.

    What the tokenizer calls a word is not enough: to some a whole text is one.
    """
    last = found[-1]
    if start < last.end or last.start == last.end:  # parts of one character; a blank, which goes with what follows
        return True
    return start == last.end and same_word and start < end and in_word(text[start - 1]) and in_word(text[start])


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out the blanks that some tokenizers count to the word behind them."""
    inside = text[start:end]
    if not inside.strip():
        return start, start
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())


def in_word(character: str) -> bool:
    """Whether a character can stand within a word: a letter, digit, accent or vowel sign, or what joins such."""
    return unicodedata.category(character)[0] in "LNM" or character in "\u200c\u200d"


def log_odds(logits: Tensor, chosen: Tensor, against: Tensor) -> Tensor:
    """Return by how much logits [rows, n] speak for `chosen` rather than `against`, masks of the same shape: [rows].

    It is the logarithm of the odds, which unlike a probability does not level off. Where a mask is empty, that side
    counts as 0.
    """
    return _log_sum(logits, chosen) - _log_sum(logits, against)


def _log_sum(logits: Tensor, mask: Tensor) -> Tensor:
    nothing = ~mask.any(dim=1)
    floor = torch.full_like(logits, -torch.inf)
    floor[nothing, 0] = 0.0  # exp(0) alone: its logarithm is 0, and has a gradient
    return torch.where(mask, logits, floor).logsumexp(dim=1)
