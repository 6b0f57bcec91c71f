"""The model through torch.compile, as `pt2.compile:` says.

With `dynamic: true` two graphs serve every shape: one for a single row, one for two and more (torch.compile always
treats a size of one as its own case). The pipeline's warm-up runs both before the model is READY.

It does not generate: there the graphs differ with the cache that grows token by token. Of a tiny GPT-2 dynamo compiled
eight before READY, its limit, and then went on compiling for 5 to 8 s in some requests; eager answers these in 0.3 s.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from hfserve.config import Config
from hfserve.engines.base import Loadable, Tensors, forward, load_model
from hfserve.errors import ConfigError


class Compiled:
    """Runs the model compiled; `run` compiles on the first call of each graph."""

    name = "compiled"
    offers: ClassVar[frozenset[str]] = frozenset({"forward"})

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.device = device

    @classmethod
    def load(cls, model_dir: Path, task: Loadable, config: Config, device: torch.device) -> Compiled:
        """See `Engine.load`. An unknown backend is a ConfigError."""
        how = config.compile
        backends = torch.compiler.list_backends(exclude_tags=())
        if how.backend not in backends:
            raise ConfigError(f"pt2.compile.backend {how.backend!r} is unknown: choose one of {', '.join(backends)}.")
        model = load_model(model_dir, task, config, device)
        # compile() in place, so that the model keeps its own class, its config and its hooks
        try:
            model.compile(
                backend=how.backend, mode=how.mode, dynamic=how.dynamic, fullgraph=how.fullgraph, options=how.options
            )
        except RuntimeError as error:
            raise ConfigError(f"pt2.compile has a mode or options that torch.compile refuses: {error}") from error
        return cls(model, device)

    def run(self, tensors: Tensors) -> Tensors:
        """See `Engine.run`."""
        return forward(self.model, tensors, self.device)

    def plain(self) -> nn.Module:
        """See `Engine.plain`."""
        return self.model
