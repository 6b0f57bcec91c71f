"""From labelled tokens to entities, by the rules of transformers' TokenClassificationPipeline, over a whole text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hfserve.tasks.base import Json

Text = Callable[[list[str]], str]  # tokens to text: the tokenizer's convert_tokens_to_string


@dataclass(frozen=True)
class Token:
    """A token of a text; `index` is its place in the row, special tokens counted, `continues` the word before it."""

    piece: str
    start: int
    end: int
    index: int
    continues: bool


@dataclass(frozen=True)
class Unit:
    """What gets one label: a token or a word."""

    label: str
    score: float
    text: str
    start: int
    end: int

    @property
    def kind(self) -> str:
        """See `kind`."""
        return kind(self.label)


def kind(label: str) -> str:
    """Return the label without B- or I-."""
    return label[2:] if label[:2] in ("B-", "I-") else label


Read = Callable[[Sequence[Token], Tensor, Sequence[str], Text], list[Json]]


def _tokens(tokens: Sequence[Token], scores: Tensor, labels: Sequence[str], text: Text) -> list[Json]:
    """`none`: every token with its label."""
    return [
        {"entity": unit.label, "score": unit.score, "index": token.index, "word": unit.text, "start": unit.start}
        | {"end": unit.end}
        for token, unit in zip(tokens, _units(tokens, scores, labels), strict=True)
    ]


def _simple(tokens: Sequence[Token], scores: Tensor, labels: Sequence[str], text: Text) -> list[Json]:
    """`simple`: neighbouring tokens of one label joined, a word's own unity not minded."""
    return _grouped(_units(tokens, scores, labels), text)


def _by_words(pick: Callable[[Tensor], Tensor]) -> Read:
    """`first`, `average`, `max`: one label a word, from the scores [labels] that `pick` makes of [tokens, labels]."""

    def read(tokens: Sequence[Token], scores: Tensor, labels: Sequence[str], text: Text) -> list[Json]:
        spans = list(_words(tokens))
        picked = [pick(scores[span]) for span in spans]
        words = [
            Token(text([token.piece for token in tokens[span]]), *_extent(tokens[span]), 0, False) for span in spans
        ]
        return _grouped(_units(words, torch.stack(picked), labels), text) if spans else []

    return read


STRATEGIES: dict[str, Read] = {
    "none": _tokens,
    "simple": _simple,
    "first": _by_words(lambda scores: scores[0]),
    "average": _by_words(lambda scores: scores.mean(dim=0)),
    "max": _by_words(lambda scores: scores[scores.amax(dim=1).argmax()]),
}


def _units(tokens: Sequence[Token], scores: Tensor, labels: Sequence[str]) -> list[Unit]:
    best = scores.max(dim=1)
    return [
        Unit(labels[index], score, token.piece, token.start, token.end)
        for token, score, index in zip(tokens, best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _extent(tokens: Sequence[Token]) -> tuple[int, int]:
    """Return where a word begins and ends; a token of blanks has no place of its own."""
    seen = [token for token in tokens if token.start < token.end] or tokens
    return seen[0].start, seen[-1].end


def _words(tokens: Sequence[Token]) -> Iterator[slice]:
    """Yield the tokens of each word."""
    starts = [i for i, token in enumerate(tokens) if i == 0 or not token.continues]
    for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
        yield slice(start, stop)


def _grouped(units: Sequence[Unit], text: Text) -> list[Json]:
    """Join neighbours of one kind; a B- begins anew."""
    groups: list[list[Unit]] = []
    for unit in units:
        if groups and groups[-1][-1].kind == unit.kind and not unit.label.startswith("B-"):
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return [_entity(group, text) for group in groups]


def _entity(group: Sequence[Unit], text: Text) -> Json:
    seen = [unit for unit in group if unit.start < unit.end] or group  # a token of blanks has no place of its own
    return {
        "entity_group": group[0].kind,
        "score": sum(unit.score for unit in group) / len(group),
        "word": text([unit.text for unit in group]),
        "start": seen[0].start,
        "end": seen[-1].end,
    }
