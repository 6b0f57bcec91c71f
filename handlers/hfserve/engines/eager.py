"""The plain PyTorch model: the reference every other engine must agree with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hfserve.config import Config
from hfserve.engines.base import Loadable, Tensors, forward, generate, load_model


class Eager:
    """Runs the model as transformers wrote it."""

    name = "eager"
    offers: ClassVar[frozenset[str]] = frozenset({"forward", "generate"})

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.device = device

    @classmethod
    def load(cls, model_dir: Path, task: Loadable, config: Config, device: torch.device) -> Eager:
        """See `Engine.load`."""
        return cls(load_model(model_dir, task, config, device), device)

    def run(self, tensors: Tensors) -> Tensors:
        """See `Engine.run`."""
        return forward(self.model, tensors, self.device)

    def plain(self) -> nn.Module:
        """See `Engine.plain`."""
        return self.model

    def generate(self, tensors: Tensors, **options: Any) -> Tensor:  # noqa: ANN401  # of transformers' generate
        """See `Generates.generate`."""
        return generate(self.model, tensors, self.device, **options)
