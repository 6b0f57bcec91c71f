"""What a task is: the meaning of a request for one kind of model, from its payload to its answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfserve.config import HandlerConfig
from hfserve.errors import BadRequest, RequestError, Unprocessable
from hfserve.tasks.pieces import Piece, Row

T = TypeVar("T")

Json = Any  # what json.dumps takes, without NaN
Tensors = dict[str, Tensor]


class Model(Protocol):
    """What a task sees of the engine: a way to run the model, with the time left and the size of a pass minded."""

    def run(self, tensors: Tensors) -> Tensors:
        """One forward pass: named inputs `[rows, ...]` to named outputs `[rows, ...]`, fp32 on the CPU."""
        ...

    def generate(self, tensors: Tensors, **options: Any) -> Tensor:  # noqa: ANN401  # of transformers' generate
        """Token ids `[rows, prompt + new]` by `transformers.GenerationMixin.generate`."""
        ...


@dataclass(frozen=True)
class Truncation:
    """How many tokens an input has, special tokens included, and how many of them the model was given."""

    tokens: int
    used: int

    def to_json(self) -> Json:
        """Return what a record tells of it."""
        return {"tokens": self.tokens, "used": self.used}


@dataclass(frozen=True)
class Batch:
    """One forward pass. `owner[r]` is the item row r came from: a long context may own several rows."""

    tensors: Tensors  # e.g. input_ids [rows, tokens]
    owner: Sequence[int]
    notes: Sequence[Any] = ()  # per row, private to the task: offsets, word ids, prompt length
    truncated: Mapping[int, Truncation] | None = None  # item -> what was cut from it; never silent


@dataclass(frozen=True)
class Target:
    """One score of the model that an explanation traces back to the words of an item.

    name: what is scored: a label, "start" or "end" of an answer, a token. prediction: the record of /predictions that
    it belongs to. row: inputs of the model by name, unpadded. pieces: the tokens of `row` that are traced; the others
    stay as they are. first: the column of the row's first token, which is negative where rows are padded on the left.
    place: where in the model's outputs the score stands, private to the task. chance: makes the prediction's score of
    the model's, where the task has not seen it.
    """

    name: str
    prediction: Json
    row: Row
    pieces: Sequence[Piece]
    first: int
    place: Any
    chance: Callable[[float], float] | None = None

    @property
    def columns(self) -> list[int]:
        """The columns of the traced tokens, as Python counts them: from the side where rows are not padded."""
        return [piece.column + self.first for piece in self.pieces]


class Refused(Exception):
    """Some items of a batch are their sender's fault; `errors` has one for each, by index. The others can go on."""

    def __init__(self, errors: Mapping[int, RequestError]) -> None:
        super().__init__(f"{len(errors)} items refused")
        self.errors = errors


class Task(ABC):
    """One kind of model. A task holds the tokenizer and the labels, never the model, and keeps nothing of a request."""

    name: ClassVar[str]  # the value of `mode:`
    auto_class: ClassVar[str]  # the class of transformers that loads its models
    needs: ClassVar[str] = "forward"  # what an engine must offer: forward or generate
    Params: ClassVar[type]  # frozen dataclass of per-request parameters; a bad one raises BadRequest
    columns: ClassVar[Mapping[str, str]]  # fields of a result record -> Open Inference Protocol datatype
    ragged: ClassVar[bool] = False  # whether items have different numbers of records
    several: ClassVar[bool] = True  # whether an item may have other than one explanation
    scoring: ClassVar[Mapping[str, Any]] = {}  # arguments that spare a model's forward what `scores` does not need
    tokenizer: PreTrainedTokenizerBase
    pad_token_id: int  # what rows are padded with

    @abstractmethod
    def __init__(self, model_dir: Path, config: HandlerConfig) -> None:
        """Read what the task needs from a folder of `save_pretrained`. Raises ConfigError."""

    @abstractmethod
    def parse(self, payload: Json, params: Any) -> dict[str, Any]:  # noqa: ANN401
        """Turn the inputs of one request into items by their place in the payload: `{"[0]": ..., "[1]": ...}`.

        A lone input has the place "", and is answered by a lone result. Raises BadRequest with the field relative to
        the payload.
        """

    def holds(self, payload: Json, params: Any) -> int:  # noqa: ANN401
        """Return how many inputs a payload has, without a look at each."""
        return len(payload) if isinstance(payload, list) else 1

    def check(self, params: Any) -> None:  # noqa: B027, ANN401  # most models can do all that their task can
        """Raise BadRequest for parameters that this model cannot follow."""

    @abstractmethod
    def size(self, item: Any) -> int:  # noqa: ANN401  # an item is the task's own
        """Return the characters (or what else grows with the cost) of an item."""

    @abstractmethod
    def encode(self, items: Sequence[Any], params: Any) -> Batch:  # noqa: ANN401
        """Make the tensors of one pass, padded to the longest row. Raises Refused, or RequestError for all items."""

    def forward(self, model: Model, batch: Batch, params: Any) -> Tensors:  # noqa: ANN401
        """Run the model; a task that generates overrides this."""
        return model.run(batch.tensors)

    @abstractmethod
    def decode(self, outputs: Tensors, batch: Batch, params: Any) -> list[Json]:  # noqa: ANN401
        """Return exactly one result per item, in order: a record or a list of records."""

    def texts(self, item: Any) -> dict[str, str]:  # noqa: ANN401  # an item is the task's own
        """Return the texts of an item by name, in the order in which the tokenizer takes them."""
        raise Unprocessable("This kind of model has no explanations.")

    def targets(self, model: Model, batch: Batch, params: Any, asked: Sequence[Json]) -> list[list[Target]]:  # noqa: ANN401
        """Return what there is to explain of each item.

        asked: what a request's `target` says, by item; null leaves it to the task. Raises Refused, or RequestError for
        all items.
        """
        raise Unprocessable("This kind of model has no explanations.")

    def scores(self, outputs: Tensors, targets: Sequence[Target]) -> Tensor:
        """Return the score [rows] of `targets`, one for each row of `outputs`, with its gradient."""
        raise NotImplementedError

    def stack(self, rows: Sequence[Row]) -> Tensors:
        """Return the rows of targets as tensors [rows, tokens], padded to the longest."""
        inputs = {name: [row[name] for row in rows] for name in rows[0]}
        return dict(self.tokenizer.pad(inputs, padding="longest", return_tensors="pt", verbose=False))

    def left(self, row: Sized) -> int:
        """Return the column of a row's first token: counted from the right, where rows are padded on the left."""
        return -len(row) if self.tokenizer.padding_side == "left" else 0

    @property
    def baseline(self) -> int:
        """The token that stands for no word: padding, or a mask where the model has no padding of its own."""
        if self.tokenizer.pad_token == self.tokenizer.eos_token and self.tokenizer.mask_token_id is not None:
            return int(self.tokenizer.mask_token_id)
        return self.pad_token_id

    @abstractmethod
    def brief(self, result: Json) -> str:
        """Return the short plain-text form of one item's result."""

    @abstractmethod
    def samples(self) -> list[Any]:
        """Return the shortest and the longest item the model takes: what warm-up runs on."""

    def trial(self) -> Any:  # noqa: ANN401
        """Return the parameters that warm-up runs with."""
        return self.Params()

    @abstractmethod
    def describe(self) -> dict[str, Json]:
        """Return what the model description says of this task: labels, limits."""

    def goldens(self) -> list[Json]:
        """Return about ten payloads, one item each, whose answers an archive carries to prove itself."""
        return list(GOLDEN_TEXTS)

    def proof(self, model: Model, batch: Batch) -> Tensors:
        """Return what goldens are compared by: the numbers behind the answers, `[rows, ...]`."""
        return self.forward(model, batch, self.trial())

    def golden_answers(self, proof: Tensors, batch: Batch) -> list[Json]:
        """Return the answers that follow from a proof."""
        return self.decode(proof, batch, self.trial())


# Plain and odd, short and long: what tokenizers and models differ on.
GOLDEN_TEXTS = (
    "Good.",
    "The staff were friendly and the room was spotless.",
    "My name is Sarah Connor, I live in London and I work for Siemens.",
    "It was not bad at all, but I would not come again!",
    "On 3 May 2021 the bridge over the Danube was closed because of the flood.",
    "don't STOP  believing -- it's 50% off (today only)",
    "Müller & Søn ApS opened a café in Zürich; señor García was there.",
    "東京 is the capital of Japan. 😀",
    "Once upon a time there was a little dog who lost his ball.",
    "The committee met twice, agreed on nothing, and went home; the minutes, which nobody had read, were approved in "
    "silence, and the chair thanked all who had come from so far for so little.",
)


def one_by_one(find: Callable[[int], T], items: int) -> list[T]:
    """Return `find(i)` of each item. Raises Refused for those whose `find` raised a RequestError."""
    found: list[T] = []
    refused: dict[int, RequestError] = {}
    for i in range(items):
        try:
            found.append(find(i))
        except RequestError as error:
            refused[i] = error
    if refused:
        raise Refused(refused)
    return found


def parameters(given: Mapping[str, Any], *classes: type) -> list[Any]:
    """Make instances of dataclasses such as a task's `Params` from what a request gave.

    Raises BadRequest naming the parameter.
    """
    known = [[spec.name for spec in fields(cls)] for cls in classes]
    for key in given:
        if not any(key in names for names in known):
            takes = ", ".join(name for names in known for name in names)
            raise BadRequest(f"Unknown parameter; this model takes {takes}.", f"parameters.{key}")
    return [
        cls(**{key: value for key, value in given.items() if key in names})
        for cls, names in zip(classes, known, strict=True)
    ]


def choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise BadRequest unless `value` is one of `allowed`, in type too (1 is not True)."""
    if not any(type(value) is type(option) and value == option for option in allowed):
        names = ", ".join("null" if option is None else str(option).lower() for option in allowed)
        raise BadRequest(f"Give one of {names}.", f"parameters.{name}")


def number(name: str, value: object, least: float, most: float) -> float | None:
    """Return a number between two bounds as a float, and null as it is. Raises BadRequest."""
    if value is None:
        return None
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
        raise BadRequest(f"Give a number from {least:g} to {most:g}.", f"parameters.{name}")
    return float(value)  # type: ignore[arg-type]  # transformers takes no whole numbers for these


def count(name: str, value: object, or_null: str = "", least: int = 1, most: int | None = None) -> None:
    """Raise BadRequest unless `value` is a whole number within bounds, or null where `or_null` says what that is."""
    if value is None and or_null:
        return
    if type(value) is not int or value < least or (most is not None and value > most):
        null = f", or null for {or_null}" if or_null else ""
        bounds = f"from {least} up" if most is None else f"from {least} to {most}"
        raise BadRequest(f"Give a whole number {bounds}{null}.", f"parameters.{name}")
