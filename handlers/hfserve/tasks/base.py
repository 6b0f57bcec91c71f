"""What a task is: the meaning of a request for one kind of model, from its payload to its answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from hfserve.config import HandlerConfig
from hfserve.errors import BadRequest, ConfigError, RequestError

Json = Any  # what json.dumps takes, without NaN
Tensors = dict[str, Tensor]
Run = Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class Truncation:
    """How many tokens an input has, special tokens included, and how many of them the model was given."""

    tokens: int
    used: int


@dataclass(frozen=True)
class Batch:
    """One forward pass. `owner[r]` is the item row r came from: a long context may own several rows."""

    tensors: Tensors  # e.g. input_ids [rows, tokens]
    owner: Sequence[int]
    notes: Sequence[Any] = ()  # per row, private to the task: offsets, word ids, prompt length
    truncated: Mapping[int, Truncation] | None = None  # item -> what was cut from it; never silent


class Refused(Exception):
    """Some items of a batch are their sender's fault; `errors` has one for each, by index. The others can go on."""

    def __init__(self, errors: Mapping[int, RequestError]) -> None:
        super().__init__(f"{len(errors)} items refused")
        self.errors = errors


class Task(ABC):
    """One kind of model. A task holds the tokenizer and the labels, never the model, and keeps nothing of a request."""

    name: ClassVar[str]  # the value of `mode:`
    auto_class: ClassVar[str]  # the class of transformers that loads its models
    Params: ClassVar[type]  # frozen dataclass of per-request parameters; a bad one raises BadRequest
    columns: ClassVar[Mapping[str, str]]  # fields of a result record -> Open Inference Protocol datatype
    pad_token_id: int  # what rows are padded with

    @abstractmethod
    def __init__(self, model_dir: Path, config: HandlerConfig) -> None:
        """Read what the task needs from a folder of `save_pretrained`. Raises ConfigError."""

    @abstractmethod
    def parse(self, payload: Json) -> list[Any]:
        """Turn the inputs of one request into 1..n items. Raises BadRequest with the field relative to the payload."""

    @abstractmethod
    def size(self, item: Any) -> int:  # noqa: ANN401  # an item is the task's own
        """Return the characters (or what else grows with the cost) of an item."""

    @abstractmethod
    def encode(self, items: Sequence[Any], params: Any) -> Batch:  # noqa: ANN401
        """Make the tensors of one forward pass, padded to the longest row. Raises Refused."""

    def forward(self, run: Run, batch: Batch, params: Any) -> Tensors:  # noqa: ANN401
        """Run the model; a task that needs several passes overrides this."""
        return run(batch.tensors)

    @abstractmethod
    def decode(self, outputs: Tensors, batch: Batch, params: Any) -> list[Json]:  # noqa: ANN401
        """Return exactly one result per item, in order: a record or a list of records."""

    @abstractmethod
    def brief(self, result: Json) -> str:
        """Return the short plain-text form of one item's result."""

    @abstractmethod
    def samples(self) -> list[Any]:
        """Return the shortest and the longest item the model takes: what warm-up and self-test run on."""

    @abstractmethod
    def describe(self) -> dict[str, Json]:
        """Return what the model description says of this task: labels, limits."""


def parameters(cls: type, given: Mapping[str, Any]) -> Any:  # noqa: ANN401  # an instance of cls
    """Make a task's `Params` from what a request gave. Raises BadRequest naming the parameter."""
    known = [spec.name for spec in fields(cls)]
    for key in given:
        if key not in known:
            raise BadRequest(f"Unknown parameter; this model takes {', '.join(known)}.", f"parameters.{key}")
    return cls(**given)


def choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise BadRequest unless `value` is one of `allowed`, in type too (1 is not True)."""
    if not any(type(value) is type(option) and value == option for option in allowed):
        names = ", ".join("null" if option is None else str(option).lower() for option in allowed)
        raise BadRequest(f"Give one of {names}.", f"parameters.{name}")


def load_tokenizer(model_dir: Path, config: HandlerConfig) -> PreTrainedTokenizerBase:
    """Load the model's own tokenizer from its folder alone, able to pad. Raises ConfigError where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_dir, local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # broken files raise whatever the code that reads them happens to
        raise ConfigError(f"The model folder has no tokenizer that loads: {type(error).__name__}: {error}") from error
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not any((model_dir / name).exists() for name in files):  # transformers makes up an empty one without a word
        raise ConfigError("The model folder has no tokenizer: save the model's own beside it with save_pretrained.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError("The tokenizer has neither a padding nor an end token: set pad_token in its files.")
    return tokenizer


def token_limit(model: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, asked: int | None) -> int:
    """Return how many tokens a row may have: the least of what the model, its tokenizer and `max_length:` allow.

    Raises ConfigError where `asked` is more than the model can take or nothing sets a limit.
    """
    positions = getattr(model, "max_position_embeddings", None)
    limits = [n for n in (positions, tokenizer.model_max_length) if n and 0 < n < 1_000_000]
    if asked is None and not limits:
        raise ConfigError("The model sets no limit of tokens: set handler.max_length.")
    if asked is not None and limits and asked > min(limits):
        raise ConfigError(f"handler.max_length is {asked}, but the model takes {min(limits)} tokens: lower it.")
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2  # below it a tokenizer cuts nothing, without a word
    if asked is not None and asked < least:
        raise ConfigError(
            f"handler.max_length is {asked}: give {least} or more, room for a word beside special tokens."
        )
    return asked or min(limits)
