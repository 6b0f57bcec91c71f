"""The engine as a task sees it: with the time that is left and the size of a pass minded."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from hfserve.engines.base import Engine, Generates, Tensors
from hfserve.errors import TooSlow

MOST_SECONDS = 1e6  # transformers takes no infinity


@dataclass(frozen=True)
class Paced:
    """At most `most` rows run at once, and nothing begins after `deadline` (seconds of the monotonic clock)."""

    engine: Engine
    most: int
    deadline: float = math.inf

    def run(self, tensors: Tensors) -> Tensors:
        """See `Model.run`. Raises TooSlow."""
        rows = len(next(iter(tensors.values())))
        parts = [self._run(tensors, start) for start in range(0, rows, self.most)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if len(parts) > 1 else parts[0]

    def generate(self, tensors: Tensors, **options: Any) -> Tensor:  # noqa: ANN401  # of transformers' generate
        """See `Model.generate`. Raises TooSlow where the time ends before all rows have."""
        left = min(self.deadline - time.monotonic(), MOST_SECONDS)
        tokens = cast(Generates, self.engine).generate(tensors, **options, max_time=left)
        if time.monotonic() > self.deadline:
            raise TooSlow("The text took longer to generate than a batch may: ask for fewer tokens.")
        return tokens

    def _run(self, tensors: Tensors, start: int) -> Tensors:
        if time.monotonic() > self.deadline:
            raise TooSlow("The input took longer than a batch may: send a shorter one.")
        return self.engine.run({name: tensor[start : start + self.most] for name, tensor in tensors.items()})
