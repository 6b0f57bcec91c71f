"""The model through torch.jit.trace, traced when it loads.

Nothing is written: a saved trace would be a second copy of the weights, and holds pickles. The trace is not frozen
either: that gained nothing to speak of (0 to 4 % of the time of a pass), and a frozen trace has its own weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from hfserve.config import Config
from hfserve.engines.base import Loadable, Tensors, load_model
from hfserve.engines.tracing import (
    TRACED_SHAPE,
    Positional,
    example,
    examples,
    first_line,
    positional,
    prove,
    run_positional,
    sample_of,
    unfit,
)


class Torchscript:
    """Runs the traced graph. One trace serves every shape; `load` proves it."""

    name = "torchscript"
    offers: ClassVar[frozenset[str]] = frozenset({"forward"})

    def __init__(
        self,
        traced: torch.jit.ScriptModule,
        model: nn.Module,
        inputs: dict[str, torch.dtype],
        outputs: Sequence[str],
        device: torch.device,
    ) -> None:
        self.traced = traced
        self.model = model
        self.inputs = inputs
        self.outputs = outputs
        self.device = device

    @classmethod
    def load(cls, model_dir: Path, task: Loadable, config: Config, device: torch.device) -> Torchscript:
        """See `Engine.load`. A model whose trace does not agree with it at every shape is a ConfigError."""
        model = load_model(model_dir, task, config, device)
        sample = sample_of(task)
        plain = positional(model, sample, device)
        rows, length = TRACED_SHAPE
        batch = example(sample, rows, length, model, task.pad_token_id)
        inputs = {name: value.dtype for name, value in sample.items()}
        engine = cls(_trace(plain, batch, device), model, inputs, plain.outputs, device)
        prove(engine, model, examples(sample, model, task.pad_token_id))
        return engine

    def run(self, tensors: Tensors) -> Tensors:
        """See `Engine.run`."""
        return run_positional(self.traced, self.inputs, self.outputs, tensors, self.device)

    def plain(self) -> nn.Module:
        """See `Engine.plain`: the model that was traced, whose weights the trace holds."""
        return self.model


def _trace(plain: Positional, batch: Tensors, device: torch.device) -> torch.jit.ScriptModule:
    with warnings.catch_warnings(), torch.inference_mode():
        # it warns of each size that Python code reads, whether it ends up as a constant or not: `prove` finds out
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", FutureWarning)  # it reads every property of a model, those on their way out too
        warnings.filterwarnings("ignore", ".*torch.jit.trace", DeprecationWarning)  # known: who asks for it, gets it
        try:
            traced: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
                plain, tuple(tensor.to(device) for tensor in batch.values()), check_trace=False
            )
        except Exception as error:  # tracing runs the model's own Python: anything may come out of it
            raise unfit(Torchscript.name, f"tracing it raises {first_line(error)}") from error
    return traced
