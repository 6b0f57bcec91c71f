"""The likeliest spans of a text in windows, from the scores of first and last tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hfserve.tasks.base import Json
from hfserve.tasks.pieces import in_word, trimmed
from hfserve.tasks.windows import Window

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


def answers(
    context: str, windows: Sequence[Window], spans: Iterable[Span], whole_words: bool
) -> Iterator[tuple[Json, Span]]:
    """Yield a record for each span, but none twice: overlapping windows, and spans of one word, give the same text."""
    seen = set()
    for span in spans:
        start, end = _place(context, windows[span.window], span, whole_words)
        if start < end and (start, end) not in seen:
            seen.add((start, end))
            yield {"answer": context[start:end], "score": span.score, "start": start, "end": end}, span


def span_of(windows: Sequence[Window], start: int, end: int, score: float = 0.0) -> Span | None:
    """Return the tokens of characters `start` to `end`, in the window that holds most of them; None if none does."""
    best: list[tuple[int, int]] = []
    for number, window in enumerate(windows):
        inside = [(number, i) for i, (first, last) in enumerate(window.offsets) if first < end and last > start]
        best = max(best, inside, key=len)
    return Span(score, best[0][0], best[0][1], best[-1][1]) if best else None


def _place(context: str, window: Window, span: Span, whole_words: bool) -> tuple[int, int]:
    """Return where in the context a span is; widened, on demand, to the letters and digits of the words it cuts.

    Some tokenizers count punctuation to the word before it: the full stop behind an answer is not part of it.
    """
    start, end = trimmed(context, window.offsets[span.first][0], window.offsets[span.last][1])
    if not whole_words or start >= end:
        return start, end
    least, most = _word(window, span.first)[0], _word(window, span.last)[1]
    while start > least and in_word(context[start - 1]):
        start -= 1
    while end < most and in_word(context[end]):
        end += 1
    return start, end


def _word(window: Window, token: int) -> tuple[int, int]:
    """Return where the word of a token begins and ends, as far as the window shows it."""
    first = last = token
    while first > 0 and window.words[first - 1] == window.words[token] is not None:
        first -= 1
    while last + 1 < len(window.words) and window.words[last + 1] == window.words[token] is not None:
        last += 1
    return window.offsets[first][0], window.offsets[last][1]


def _band(first: Tensor, last: Tensor, longest: int) -> Tensor:
    """Return log probabilities [tokens, length - 1] of the spans that begin at a token and have a length."""
    width = min(longest, len(last))
    beyond = last.new_full((width - 1,), -torch.inf)
    return first[:, None] + torch.cat([last, beyond]).unfold(0, width, 1)
