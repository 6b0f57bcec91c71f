"""The model on AWS accelerators: Inferentia 1 (`neuron`), Inferentia 2 and Trainium (`neuronx`).

Their compilers take fixed shapes only: `handler.batch_size` rows of `handler.max_length` tokens. Smaller batches are
padded up to that, larger ones are run in several passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from hfserve.config import Config
from hfserve.engines.base import Loadable, Tensors, forward, load_model
from hfserve.engines.tracing import example, positional, run_positional, sample_of
from hfserve.errors import ConfigError


class Neuron:
    """Runs a graph of one fixed shape, traced by AWS's package when it loads."""

    name = "neuron"
    offers: ClassVar[frozenset[str]] = frozenset({"forward"})
    package: ClassVar[str] = "torch_neuron"
    machine: ClassVar[str] = "an Inf1 machine"
    device = torch.device("cpu")  # where the tensors go; the package moves them on

    def __init__(
        self,
        traced: Callable[..., Sequence[Tensor]],
        example: Tensors,
        outputs: Sequence[str],
        by_token: frozenset[str],
        pad_token_id: int,
        load: Callable[[], nn.Module],
    ) -> None:
        self.traced = traced
        self.plain = load  # see `Engine.plain`: loaded again, as what is on the accelerator has no gradients
        self.example = example
        self.outputs = outputs
        self.by_token = by_token  # outputs [rows, tokens, ...], where padding has to be cut off
        self.pad_token_id = pad_token_id

    @classmethod
    def load(cls, model_dir: Path, task: Loadable, config: Config, device: torch.device) -> Neuron:
        """See `Engine.load`. Where AWS's package is missing it is a ConfigError."""
        trace = cls._tracer()
        rows, length = (
            config.handler.batch_size or 1,
            config.handler.max_length or 0,
        )  # the configuration has checked it
        model = load_model(model_dir, task, config, cls.device)
        sample = sample_of(task)
        plain = positional(model, sample, cls.device)
        full, shorter = (example(sample, rows, n, model, task.pad_token_id) for n in (length, length - 1))
        was, less = forward(model, full, cls.device), forward(model, shorter, cls.device)
        by_token = frozenset(name for name in plain.outputs if was[name].shape != less[name].shape)
        traced = trace(plain, tuple(full.values()))
        load = partial(load_model, model_dir, task, config, cls.device)
        return cls(traced, full, plain.outputs, by_token, task.pad_token_id, load)

    @classmethod
    def _tracer(cls) -> Callable[..., Callable[..., Sequence[Tensor]]]:
        try:
            trace: Callable[..., Callable[..., Sequence[Tensor]]] = import_module(cls.package).trace
        except ImportError as error:
            raise ConfigError(
                f"handler.hardware {cls.name!r} needs the package {cls.package.replace('_', '-')}, which cannot be "
                f"imported here ({error}): install it on {cls.machine}, or remove handler.hardware."
            ) from error
        return trace

    def run(self, tensors: Tensors) -> Tensors:
        """See `Engine.run`."""
        rows, length = next(iter(tensors.values())).shape[:2]
        most = len(next(iter(self.example.values())))
        parts = [
            self._pass({name: tensor[start : start + most] for name, tensor in tensors.items()})
            for start in range(0, rows, most)
        ]
        found = {name: torch.cat([part[name] for part in parts])[:rows] for name in self.outputs}
        return {name: value[:, :length] if name in self.by_token else value for name, value in found.items()}

    def _pass(self, tensors: Tensors) -> Tensors:
        """One pass of the traced shape; the rows and tokens that fill it up come back too."""
        full = {}
        for name, like in self.example.items():
            full[name] = torch.full_like(like, self.pad_token_id if name == "input_ids" else 0)
            full[name][tuple(map(slice, tensors[name].shape))] = tensors[name]
        inputs = {name: like.dtype for name, like in self.example.items()}
        return run_positional(self.traced, inputs, self.outputs, full, self.device)


class Neuronx(Neuron):
    """The same with the package of the later machines."""

    name = "neuronx"
    package = "torch_neuronx"
    machine = "an Inf2 or Trn1 machine"
