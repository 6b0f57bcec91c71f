"""The plain PyTorch model: the reference every other engine must agree with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from hfserve.config import Config
from hfserve.engines.base import Loadable, Tensors, forward, load_model


class Eager:
    """Runs the model as transformers wrote it."""

    name = "eager"

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
