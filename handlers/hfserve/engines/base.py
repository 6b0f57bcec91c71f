"""What an engine is: something that runs a model's forward pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import transformers
from torch import Tensor, nn

from hfserve.config import Config
from hfserve.errors import ConfigError

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Loadable(Protocol):
    """What an engine needs to know of a task: what loads its models, what pads its rows, and what its inputs are.

    `needs` is what it asks of an engine: one of the words of `Engine.offers`.
    """

    name: ClassVar[str]
    needs: ClassVar[str]
    Params: ClassVar[type]

    @property
    def auto_class(self) -> str:
        """A name such as `AutoModelForSequenceClassification`."""
        ...

    @property
    def pad_token_id(self) -> int:
        """The token that the task's tokenizer pads with."""
        ...

    def samples(self) -> Sequence[Any]:
        """Items from the shortest to one that fills the model."""
        ...

    def encode(self, items: Any, params: Any) -> Any:  # noqa: ANN401  # a task's items and its Batch are its own
        """Items to a batch, whose `tensors` are the inputs of a forward pass."""
        ...


class Engine(Protocol):
    """Runs forward passes of one model on one device.

    `name` is what the model description shows; `device` is where the tensors go; `offers` is what a task may ask of it:
    "forward", which is `run`, and of some engines "generate", which is a method of `Generates`.
    """

    name: str
    offers: ClassVar[frozenset[str]]
    device: torch.device

    @classmethod
    def load(cls, model_dir: Path, task: Loadable, config: Config, device: torch.device) -> Engine:
        """Load the weights in `model_dir` as the class `task` asks for. Raises ConfigError."""
        ...

    def run(self, tensors: Tensors) -> Tensors:
        """One forward pass: named inputs `[rows, ...]` to named outputs `[rows, ...]` as fp32 on the CPU."""
        ...

    def plain(self) -> nn.Module:
        """Return the model as transformers wrote it, over the same weights in memory, for what needs gradients.

        Only its `forward` may be called, and not the model itself, which may be compiled.
        """
        ...


class Generates(Protocol):
    """An engine whose `offers` has "generate"."""

    def generate(self, tensors: Tensors, **options: Any) -> Tensor:  # noqa: ANN401  # of transformers' generate
        """Sequences [rows, tokens] on the CPU, as `model.generate` returns them for these options."""
        ...


@runtime_checkable
class Builds(Protocol):
    """An engine that prepares files when the archive is built; `engines.build` calls it."""

    @classmethod
    def build(cls, model_dir: Path, task: Loadable, config: Config, into: Path, device: torch.device) -> None:
        """Write into the folder `into` what `load` needs beside the model. Raises ConfigError."""
        ...


def load_model(model_dir: Path, task: Loadable, config: Config, device: torch.device) -> nn.Module:
    """The model in `handler.precision`, from safetensors in `model_dir` alone: nothing is fetched, unpickled or random.

    Raises ConfigError when the weights lack a part of the architecture, as those of a model without a trained head do.
    """
    spread = config.handler.model_parallel and _gpus_to_spread_over()
    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": config.handler.trust_remote_code,
        "dtype": PRECISIONS[config.handler.precision],
        "output_loading_info": True,
        **({"attn_implementation": "sdpa"} if config.handler.BetterTransformer else {}),
        **({"device_map": "auto"} if spread else {}),
    }
    transformers.utils.logging.disable_progress_bar()  # the log of a worker is no place for one
    model, info = getattr(transformers, task.auto_class).from_pretrained(model_dir, **options)
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise ConfigError(
            f"The weights lack {missing}: this model was not trained for handler.mode {config.handler.mode!r}; "
            "package one that was."
        )
    # GPT-like classifiers look for the last token before this one: it must be the one that rows are padded with
    model.config.pad_token_id = task.pad_token_id
    model.eval().requires_grad_(requires_grad=False)  # what is learnt from the model are its inputs' gradients
    return model if spread else model.to(device)  # type: ignore[no-any-return]


def _gpus_to_spread_over() -> bool:
    """Whether layers can be spread over GPUs. Raises ConfigError where they could if a package were there."""
    if not torch.cuda.is_available():
        logger.warning("handler.model_parallel is true, but there is no GPU here: the CPU serves.")
        return False
    if not find_spec("accelerate"):
        raise ConfigError(
            "handler.model_parallel needs the package accelerate, which is not installed: "
            "`pip install accelerate`, or set it to false."
        )
    return True


def forward(model: nn.Module, tensors: Tensors, device: torch.device) -> Tensors:
    """Run `model` on `device` and bring back what it returns by name, as fp32 on the CPU."""
    with torch.inference_mode():
        outputs = model(**{name: tensor.to(device) for name, tensor in tensors.items()})
    return {name: value.float().cpu() for name, value in outputs.items() if isinstance(value, Tensor)}


def generate(model: nn.Module, tensors: Tensors, device: torch.device, **options: Any) -> Tensor:  # noqa: ANN401
    """Run transformers' `model.generate` on `device` and bring the sequences [rows, tokens] back to the CPU."""
    with torch.inference_mode():
        sequences: Tensor = model.generate(  # type: ignore[operator]  # every model with a language head has it
            **{name: tensor.to(device) for name, tensor in tensors.items()}, **options
        )
    return sequences.cpu()
