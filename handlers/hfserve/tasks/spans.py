"""The likeliest spans of a text in windows, from the scores of first and last tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024  # spans that are brought to Python at a time; mostly the first few are all that is asked for


class Span(NamedTuple):
    """Tokens `first` to `last` of a window, with their probability."""

    score: float
    window: int
    first: int
    last: int


class Side(NamedTuple):
    """Log probabilities of one end of the answer: of each token, by window, and of there being no answer."""

    tokens: Sequence[Tensor]
    nothing: Tensor | None


def side(tokens: Sequence[Tensor], nothing: Sequence[Tensor]) -> Side:
    """Turn logits into log probabilities over all windows together.

    tokens: logits [tokens] of each window; nothing: the logit of "no answer" in each, or none where that cannot be.
    There is no answer only where no window has one, so the least of these logits counts (as in SQuAD 2's evaluation).
    """
    least = [torch.stack(list(nothing)).min().reshape(1)] if nothing else []
    sizes = [len(logits) for logits in (*tokens, *least)]
    logs = torch.split(torch.cat([*tokens, *least]).log_softmax(dim=0), sizes)
    return Side(logs[: len(tokens)], logs[-1] if nothing else None)


def best(starts: Side, ends: Side, longest: int) -> Iterator[Span]:
    """Yield spans of at most `longest` tokens within a window, likeliest first."""
    bands = [_band(first, last, longest) for first, last in zip(starts.tokens, ends.tokens, strict=True)]
    widths = [band.shape[1] for band in bands]
    offsets = torch.tensor([0, *(band.numel() for band in bands)]).cumsum(dim=0)
    scores, order = torch.cat([band.flatten() for band in bands]).sort(descending=True, stable=True)
    windows = torch.bucketize(order, offsets[1:], right=True)
    for start in range(0, len(order), BLOCK):
        block = slice(start, start + BLOCK)
        places = (order[block] - offsets[windows[block]]).tolist()
        for score, window, place in zip(scores[block].exp().tolist(), windows[block].tolist(), places, strict=True):
            first, further = divmod(place, widths[window])
            if first + further < len(ends.tokens[window]):
                yield Span(score, window, first, first + further)


def _band(first: Tensor, last: Tensor, longest: int) -> Tensor:
    """Return log probabilities [tokens, length - 1] of the spans that begin at a token and have a length."""
    width = min(longest, len(last))
    beyond = last.new_full((width - 1,), -torch.inf)
    return first[:, None] + torch.cat([last, beyond]).unfold(0, width, 1)
