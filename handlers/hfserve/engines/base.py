"""What an engine is: something that runs a model's forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn

from hfserve.config import Config
from hfserve.errors import ConfigError

Tensors = dict[str, Tensor]


class Loadable(Protocol):
    """What an engine needs to know of a task: which class of transformers loads its models, and what pads its rows."""

    @property
    def auto_class(self) -> str:
        """A name such as `AutoModelForSequenceClassification`."""
        ...

    @property
    def pad_token_id(self) -> int:
        """The token that the task's tokenizer pads with."""
        ...


class Engine(Protocol):
    """Runs forward passes of one model on one device.

    `name` is what the model description shows; `device` is where the tensors go.
    """

    name: str
    device: torch.device

    @classmethod
    def load(cls, model_dir: Path, task: Loadable, config: Config, device: torch.device) -> Engine:
        """Load the weights in `model_dir` as the class `task` asks for. Raises ConfigError."""
        ...

    def run(self, tensors: Tensors) -> Tensors:
        """One forward pass: named inputs `[rows, ...]` to named outputs `[rows, ...]` as fp32 on the CPU."""
        ...


def load_model(model_dir: Path, task: Loadable, config: Config, device: torch.device) -> nn.Module:
    """The model in fp32, from safetensors in `model_dir` alone: nothing is fetched, unpickled or left random.

    Raises ConfigError when the weights lack a part of the architecture, as those of a model without a trained head do.
    """
    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": config.handler.trust_remote_code,
        "dtype": torch.float32,
        "output_loading_info": True,
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
    return model.eval().to(device)  # type: ignore[no-any-return]


def forward(model: nn.Module, tensors: Tensors, device: torch.device) -> Tensors:
    """Run `model` on `device` and bring back what it returns by name, as fp32 on the CPU."""
    with torch.inference_mode():
        outputs = model(**{name: tensor.to(device) for name, tensor in tensors.items()})
    return {name: value.float().cpu() for name, value in outputs.items() if isinstance(value, Tensor)}
