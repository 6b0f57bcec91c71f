"""The engines by name. Each is loaded from its dotted string when it is asked for, so that none costs the others."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

import torch

from hfserve.config import Config
from hfserve.engines.base import Builds, Engine, Loadable
from hfserve.errors import ConfigError

ENGINES = {
    "eager": "hfserve.engines.eager:Eager",
    "compiled": "hfserve.engines.compiled:Compiled",
    "torchscript": "hfserve.engines.torchscript:Torchscript",
    "aotinductor": "hfserve.engines.aotinductor:Aotinductor",
    "neuron": "hfserve.engines.neuron:Neuron",
    "neuronx": "hfserve.engines.neuron:Neuronx",
}


def engine_class(name: str) -> type[Engine]:
    """The class that `ENGINES` names."""
    module, attribute = ENGINES[name].split(":")
    return cast(type[Engine], getattr(import_module(module), attribute))


def engines_for(task: Loadable, config: Config) -> list[str]:
    """The engines to try for a task, best first: those of `config.engines` that can do what it asks of a model.

    Raises ConfigError where none can.
    """
    found = [name for name in config.engines if task.needs in engine_class(name).offers]
    if not found:
        raise ConfigError(
            f"Engine {config.engines[0]} does not {task.needs}, and handler.mode {task.name} needs that: set "
            "handler.engine to eager, and leave handler.save_mode and handler.hardware out."
        )
    return found


def build(model_dir: Path, task: Loadable, config: Config, into: Path, device: torch.device) -> None:
    """Let the engines that `config` names prepare their files in `into`; most have none. Raises ConfigError."""
    for name in engines_for(task, config):
        engine = engine_class(name)
        if isinstance(engine, Builds):
            engine.build(model_dir, task, config, into, device)
