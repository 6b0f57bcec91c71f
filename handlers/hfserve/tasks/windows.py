"""Texts longer than the model, as overlapping windows: rows of tokens that know where in the text they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfserve.errors import ConfigError
from hfserve.tasks.base import Batch, Tensors


@dataclass(frozen=True)
class Window:
    """One row. `columns` of it are tokens of the text; the others are special, padding, or a question's.

    ids, offsets, words: of those tokens; offsets are (start, end) in characters, words their place in the text (None
    where the tokenizer does not say). special: the column of the token that stands for the whole row, if it has one.
    encoding: the tokenizer's own account of the row, before it was padded.
    """

    columns: range
    ids: list[int]
    offsets: Sequence[tuple[int, int]]
    words: Sequence[int | None]
    special: int
    encoding: Any


def cut(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Sequence[Any]],
    part: int,
    **options: Any,  # noqa: ANN401
) -> tuple[Tensors, list[int], list[Window]]:
    """Tokenise texts, or pairs of which `part` (0 or 1) is the text, into rows of at most `max_length` tokens.

    options: of the tokenizer; max_length, stride (tokens that neighbouring windows share), truncation.
    Returns tensors [rows, tokens], the text that each row is of, and each row's window.
    """
    rows = tokenizer(*texts, return_overflowing_tokens=True, return_offsets_mapping=True, verbose=False, **options)
    windows = [_window(encoding, part, tokenizer.cls_token_id) for encoding in rows.encodings]
    inputs = {name: rows[name] for name in tokenizer.model_input_names if name in rows}
    padded = tokenizer.pad(inputs, padding="longest", return_tensors="pt", verbose=False)
    moved = padded["input_ids"].shape[1] if tokenizer.padding_side == "left" else 0
    if moved:
        windows = [_shift(window, moved - len(ids)) for window, ids in zip(windows, rows["input_ids"], strict=True)]
    return dict(padded), list(rows["overflow_to_sample_mapping"]), windows


def kept(windows: Sequence[Window], stride: int) -> Iterator[slice]:
    """Yield which tokens of each window count, so that every token of the text counts once.

    Neighbours share `stride` tokens, and each keeps the half of them that is farther from its edge: a token is judged
    where it has more of its text around it.
    """
    half = stride // 2
    for i, window in enumerate(windows):
        count = len(window.columns)
        yield slice(half if i else 0, count if i == len(windows) - 1 else count - stride + half)


def rows_by_item(batch: Batch) -> list[list[int]]:
    """Return the rows that each item owns, in the order of the items."""
    rows: dict[int, list[int]] = {}
    for row, item in enumerate(batch.owner):
        rows.setdefault(item, []).append(row)
    return list(rows.values())


def without_padding(outputs: Tensors, batch: Batch, pad_token_id: int) -> Tensors:
    """Return outputs [rows, tokens, ...] with zeros where rows are padded: there engines may differ as they like."""
    padded = batch.tensors["input_ids"] == pad_token_id
    if "attention_mask" in batch.tensors:
        padded = batch.tensors["attention_mask"] == 0
    return {
        name: value.masked_fill(padded.reshape(*padded.shape, *[1] * (value.dim() - 2)), 0.0)
        for name, value in outputs.items()
        if value.shape[:2] == padded.shape
    }


def prepare(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer cut windows in the order of the text.

    Raises ConfigError for one that does not know where in the text its tokens stand.
    """
    tokenizer.truncation_side = "right"
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{type(tokenizer).__name__} gives no character offsets: save the model with a fast tokenizer "
            "(one that has a tokenizer.json)."
        )


def _window(encoding: Any, part: int, cls: int | None) -> Window:  # noqa: ANN401  # tokenizers.Encoding
    columns = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence == part]
    first, stop = (columns[0], columns[-1] + 1) if columns else (0, 0)
    # not one that somebody typed into the text
    own = [
        i
        for i, (token, part) in enumerate(zip(encoding.ids, encoding.sequence_ids, strict=True))
        if token == cls and part is None
    ]
    return Window(
        columns=range(first, stop),
        ids=encoding.ids[first:stop],
        offsets=encoding.offsets[first:stop],
        words=encoding.word_ids[first:stop],
        special=own[0] if own else 0,
        encoding=encoding,
    )


def _shift(window: Window, by: int) -> Window:
    columns = range(window.columns.start + by, window.columns.stop + by)
    return replace(window, columns=columns, special=window.special + by)
