"""The engines by name. Each is loaded from its dotted string when it is asked for, so that none costs the others."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from hfserve.engines.base import Engine

ENGINES = {
    "eager": "hfserve.engines.eager:Eager",
    "compiled": "hfserve.engines.compiled:Compiled",
    "torchscript": "hfserve.engines.torchscript:Torchscript",
}


def engine_class(name: str) -> type[Engine]:
    """The class that `ENGINES` names."""
    module, attribute = ENGINES[name].split(":")
    return cast(type[Engine], getattr(import_module(module), attribute))
