"""Texts that end what a model generates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria


class Stops(StoppingCriteria):
    """Ends a row when its new text holds a stop text.

    transformers' own StopStringCriteria takes a vocabulary apart by prefixes that not every tokenizer can spell.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str], prompt: int) -> None:
        self.decode = decode
        self.stop = stop
        self.prompt = prompt
        self.tail = 4 * max(map(len, stop)) + 8  # tokens; some tokenizers need four for a character

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:  # noqa: ANN401
        """Say of each row of `input_ids` [rows, tokens] whether it has ended."""
        texts = [self.decode(ids) for ids in input_ids[:, self.prompt :][:, -self.tail :].tolist()]
        ended = [any(mark in text for mark in self.stop) for text in texts]
        return torch.tensor(ended, device=input_ids.device)  # type: ignore[return-value]
