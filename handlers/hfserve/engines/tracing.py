"""What the engines that record a model's graph share: the model as tracers want it, examples, and the proof."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hfserve.engines.base import Engine, Loadable, Tensors, forward
from hfserve.errors import ConfigError

# Rows and tokens: one of each, prime numbers, and rows that end in padding at different places.
PROOF_SHAPES = ((1, 1), (1, 2), (2, 7), (3, 33), (5, 12))
TRACED_SHAPE = (3, 11)  # neither is 1, which tracers would take for a constant

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest value, or of 1


class Positional(nn.Module):
    """A model with its tensors in the order of `inputs` in, and a tuple of tensors in the order of `outputs` out."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`tensors` are [rows, ...] each, and so are the results."""
        found = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(found[name] for name in self.outputs)


def positional(model: nn.Module, sample: Tensors, device: torch.device) -> Positional:
    """Wrap `model`; running it on `sample` tells what its outputs are called."""
    return Positional(model, list(sample), list(forward(model, sample, device))).eval()


def sample_of(task: Loadable) -> Tensors:
    """The inputs of a real pass: the task's samples, of which the longest fills the model."""
    tensors: Tensors = dict(task.encode(task.samples(), task.Params()).tensors)
    return tensors


def example(sample: Tensors, rows: int, length: int, model: nn.Module, pad_token_id: int) -> Tensors:
    """Inputs like `sample` in another shape; row i ends in i tokens of padding.

    Example: rows 2, length 3 -> input_ids [[7, 14, 21], [28, 35, pad]], attention_mask [[1, 1, 1], [1, 1, 0]]
    """
    ends = length - torch.arange(rows) % length  # [rows]; each row keeps a token
    mask = torch.arange(length) < ends[:, None]  # [rows, length]
    vocabulary: Any = getattr(model.config, "vocab_size", 1)
    ids = torch.arange(1, rows * length + 1).view(rows, length) * 7 % vocabulary
    known = {"input_ids": ids.where(mask, torch.tensor(pad_token_id)), "attention_mask": mask}
    nothing = torch.zeros(rows, length)
    return {
        name: known.get(name, nothing).to(tensor.dtype)
        if tensor.dim() == 2
        else tensor[torch.arange(rows) % len(tensor)]
        for name, tensor in sample.items()
    }


def examples(sample: Tensors, model: nn.Module, pad_token_id: int) -> Iterator[Tensors]:
    """Inputs of every shape in PROOF_SHAPES that the model takes, and `sample` itself, which is as long as may be."""
    longest = max(tensor.shape[1] for tensor in sample.values())
    for rows, length in PROOF_SHAPES:
        yield example(sample, rows, min(length, longest), model, pad_token_id)
    yield sample


def prove(engine: Engine, model: nn.Module, batches: Iterable[Tensors]) -> None:
    """Compare `engine` with the plain `model`. Raises ConfigError at the first batch where it fails or differs."""
    for tensors in batches:
        shape = list(next(iter(tensors.values())).shape)
        try:
            found = engine.run(tensors)
        except Exception as error:
            raise unfit(engine.name, f"at shape {shape} it raises {first_line(error)}") from error
        for name, wanted in forward(model, tensors, engine.device).items():
            if found[name].shape != wanted.shape:
                raise unfit(engine.name, f"at shape {shape} {name} has the shape {list(found[name].shape)}")
            apart = (found[name] - wanted).abs().max().item()
            allowed = TOLERANCES[next(model.parameters()).dtype] * max(1.0, wanted.abs().max().item())
            if not apart <= allowed:  # also where it is not a number
                raise unfit(engine.name, f"at shape {shape} {name} differs by {apart:.1e} from the plain model's")


def unfit(engine: str, reason: str) -> ConfigError:
    """The refusal of a model that an engine cannot serve."""
    return ConfigError(
        f"This model cannot be served with dynamic shapes by engine {engine}: {reason}; "
        "set handler.engine to compiled or eager."
    )


def first_line(error: Exception) -> str:
    """What kind of error it is, and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def run_positional(
    call: Callable[..., Sequence[Tensor]],
    inputs: dict[str, torch.dtype],
    outputs: Sequence[str],
    tensors: Tensors,
    device: torch.device,
) -> Tensors:
    """Run a recorded graph: tensors by name, in their order, and what comes back by name, as fp32 on the CPU."""
    with torch.inference_mode():
        # contiguous: a compiled graph reads the memory of its inputs as it lies
        found = call(*(tensors[name].to(device, dtype).contiguous() for name, dtype in inputs.items()))
    return {name: value.float().cpu() for name, value in zip(outputs, found, strict=True)}
