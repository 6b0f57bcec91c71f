"""model-config.yaml: the sections `handler:` and `pt2:` as frozen dataclasses.

What cannot work is refused here, when the archive loads, with the key and the fix in the message. An unknown key is
refused too: a misspelt `max_lenght` must not silently mean the default.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from hfserve.errors import ConfigError

logger = logging.getLogger(__name__)

D = TypeVar("D")

# The keys TorchServe's front end reads (org.pytorch.serve.archive.model.ModelConfig, 0.12).
FRONTEND_KEYS = frozenset({
    "minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout", "deviceType",
    "deviceIds", "parallelType", "parallelLevel", "torchrun", "maxRetryTimeoutInSec", "clientTimeoutInMills",
    "jobQueueSize", "useJobTicket", "sequenceBatching", "sequenceMaxIdleMSec", "sequenceTimeoutMSec", "maxNumSequence",
    "maxSequenceJobQueueSize", "continuousBatching", "useVenv", "asyncCommunication",
})  # fmt: skip

COUNTS = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "startupTimeout", "jobQueueSize")

UNFIT_KEYS = {
    "asyncCommunication": "TorchServe then keeps every answered request in memory",
    "continuousBatching": "each request is answered as a whole",
    "sequenceBatching": "each request is answered by itself",
}

DEFAULT_RESPONSE_TIMEOUT = 120  # seconds; TorchServe's own default

# Keys of TorchServe's Huggingface_Transformers example that mean less today: value that says nothing -> what holds.
UPSTREAM_KEYS: dict[str, tuple[object, str]] = {
    "do_lower_case": (None, "the tokenizer's own casing is kept"),
    "num_labels": (0, "a trained model keeps its own labels"),
    "embedding_name": (None, "the embedding is found through get_input_embeddings()"),
    "batch_size": (None, "batchSize at the top of the file sets it"),
    "BetterTransformer": (False, "scaled-dot-product attention, its successor, is used"),
    "model_parallel": (False, "layers are spread over the GPUs by device_map"),
}

CHOICES: dict[str, tuple[str | None, ...]] = {
    "engine": (None, "eager", "compiled", "torchscript", "aotinductor"),
    "precision": ("fp32", "bf16", "fp16"),
    "save_mode": ("pretrained", "torchscript"),
    "hardware": (None, "neuron", "neuronx"),
}


@dataclass(frozen=True)
class HandlerConfig:
    """The section `handler:`; model-config.yaml at the root of the repository explains every key."""

    mode: str
    model_name: str = ""
    revision: str | None = None
    max_length: int | None = None
    trust_remote_code: bool = False
    max_inputs: int = 256
    max_characters: int = 1_000_000
    max_rows: int = 32
    engine: str | None = None
    precision: str = "fp32"
    save_mode: str = "pretrained"
    hardware: str | None = None
    tolerance: float | int | None = None
    captum_explanation: bool = True
    batch_size: int | None = None
    BetterTransformer: bool = False
    model_parallel: bool = False

    def __post_init__(self) -> None:
        for name in ("max_length", "max_inputs", "max_characters", "max_rows", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"handler.{name} is {value}: give a whole number from 1 up.")
        if self.tolerance is not None and not 0 < self.tolerance <= 1:
            raise ConfigError(f"handler.tolerance is {self.tolerance}: give a number above 0, up to 1.")
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                names = ", ".join("null" if choice is None else choice for choice in allowed)
                raise ConfigError(f"handler.{name} {value!r} is unknown: choose one of {names}.")
        self._refuse_contradictions()

    @property
    def chosen_engine(self) -> str | None:
        """The one engine that `hardware`, `engine` or `save_mode` asks for; None leaves it to `pt2.compile`."""
        return self.hardware or self.engine or ("torchscript" if self.save_mode == "torchscript" else None)

    def _refuse_contradictions(self) -> None:
        if self.hardware and self.engine:
            raise ConfigError(
                f"handler.hardware {self.hardware!r} and handler.engine {self.engine!r} name two engines: remove one."
            )
        if self.hardware and not self.max_length:
            raise ConfigError(f"handler.hardware {self.hardware!r} runs one fixed length: set handler.max_length.")
        if self.save_mode == "torchscript" and self.engine not in (None, "torchscript"):
            raise ConfigError(
                f"handler.save_mode 'torchscript' and handler.engine {self.engine!r} name two engines: remove one."
            )
        if self.model_parallel and self.chosen_engine not in (None, "eager", "compiled"):
            raise ConfigError(
                f"handler.model_parallel spreads layers over GPUs, and engine {self.chosen_engine!r} runs on "
                "one device: set it to false."
            )


@dataclass(frozen=True)
class CompileConfig:
    """The section `pt2.compile:`, the arguments of torch.compile and whether to use it."""

    enable: bool = True
    backend: str = "inductor"
    mode: str | None = None
    dynamic: bool = True
    fullgraph: bool = False
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.mode and self.options:
            raise ConfigError("pt2.compile has both mode and options: torch.compile takes one of them.")


@dataclass(frozen=True)
class Config:
    """A whole model-config.yaml. `response_timeout` is in seconds, after which TorchServe kills the worker."""

    handler: HandlerConfig
    compile: CompileConfig = field(default_factory=CompileConfig)
    response_timeout: int = DEFAULT_RESPONSE_TIMEOUT

    def __post_init__(self) -> None:
        if self.handler.engine == "compiled" and not self.compile.enable:
            raise ConfigError("handler.engine is 'compiled', but pt2.compile.enable is false: set it to true.")

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines to try, best first: a machine without a C++ compiler still serves, unless one is asked for."""
        if self.handler.chosen_engine:
            return (self.handler.chosen_engine,)
        if not self.compile.enable:
            return ("eager",)
        return ("compiled",) if self.compile.fullgraph else ("compiled", "eager")

    @property
    def time_budget(self) -> float:
        """Seconds one batch may take: a good way below `response_timeout`, so that a worker is never killed for it."""
        return 0.8 * self.response_timeout


def read_config(path: Path) -> Config:
    """Read model-config.yaml. Raises ConfigError where it cannot be served as written."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}") from error
    return parse_config(content)


def parse_config(content: object) -> Config:
    """What `read_config` does with the content of the file."""
    top = _mapping(content, "model-config.yaml")
    _refuse_unknown(top, [*FRONTEND_KEYS, "handler", "pt2"], "")
    for key, reason in UNFIT_KEYS.items():
        if top.get(key):
            raise ConfigError(f"{key}: {top[key]!r} does not work here, as {reason}: remove it.")
    for key in COUNTS:
        if top.get(key) is not None and (type(top[key]) is not int or top[key] < 0):
            raise ConfigError(f"{key} is {top[key]!r}: give a whole number from 0 up, or null.")
    pt2 = _mapping(top.get("pt2") or {}, "pt2")
    _refuse_unknown(pt2, ["compile"], "pt2.")
    timeout = top.get("responseTimeout", DEFAULT_RESPONSE_TIMEOUT)
    if type(timeout) is not int or timeout < 1:
        raise ConfigError(f"responseTimeout is {timeout!r}: give whole seconds from 1 up.")
    return Config(
        handler=_build(HandlerConfig, _without_upstream_keys(_mapping(top.get("handler"), "handler")), "handler."),
        compile=_build(CompileConfig, _mapping(pt2.get("compile") or {}, "pt2.compile"), "pt2.compile."),
        response_timeout=timeout,
    )


def _without_upstream_keys(handler: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the upstream example's keys that are no keys here, with one warning that says what holds instead."""
    superseded = []
    for key, (silent, instead) in UPSTREAM_KEYS.items():
        traced = key == "batch_size" and handler.get("hardware")  # there it is the batch that is traced
        if handler.get(key) not in (None, silent) and not traced:
            superseded.append(f"{key} ({instead})")
    if superseded:
        logger.warning("Keys of `handler:` that mean less than they did: %s.", "; ".join(superseded))
    known = get_type_hints(HandlerConfig)
    return {key: value for key, value in handler.items() if key in known or key not in UPSTREAM_KEYS}


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a section of `key: value` lines.")
    return value


def _refuse_unknown(section: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    known = sorted(known)
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}."
            raise ConfigError(f"{prefix}{key} is not a key of model-config.yaml: {hint}")


def _build(cls: type[D], section: Mapping[str, Any], prefix: str) -> D:
    """Make a dataclass from a section, checking names and types."""
    types = get_type_hints(cls)
    _refuse_unknown(section, types, prefix)
    for spec in fields(cls):  # type: ignore[arg-type]  # D is always one of the dataclasses above
        if spec.name not in section:
            if spec.default is MISSING and spec.default_factory is MISSING:
                raise ConfigError(f"{prefix}{spec.name} is missing from model-config.yaml.")
            continue
        allowed = _plain_types(types[spec.name])
        value = section[spec.name]
        if type(value) not in allowed:  # not isinstance: True must not pass for the number 1
            names = " or ".join("null" if kind is NoneType else kind.__name__ for kind in allowed)
            raise ConfigError(f"{prefix}{spec.name} is {value!r}: give {names}.")
    return cls(**section)


def _plain_types(hint: Any) -> tuple[type, ...]:  # noqa: ANN401  # a type expression has no narrower type
    """`int | None` -> (int, NoneType); `dict[str, Any]` -> (dict,)."""
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(getattr(option, "__origin__", option) for option in options)
