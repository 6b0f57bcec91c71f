"""Texts, or pairs of texts, to labels with scores: one label of several, several at once, or a regression's number."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from hfserve.config import HandlerConfig
from hfserve.errors import BadRequest, ConfigError, Unprocessable
from hfserve.tasks.base import Batch, Json, Refused, Task, Tensors, Truncation, choice, load_tokenizer, token_limit

TEXT_KEYS = ("text", "inputs", "data")  # the first is ours, the others come from other servers' clients

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: torch.softmax(logits, dim=-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}


@dataclass(frozen=True)
class Text:
    """One item: a text, and for models that compare two, its partner."""

    text: str
    pair: str | None = None


@dataclass(frozen=True)
class ClassificationParams:
    """What a request may ask for.

    top_k: how many labels, best first; null for all.
    function_to_apply: softmax, sigmoid or none; null for what the model was trained for.
    truncation: true cuts a text that is too long and says so; "error" refuses it with 422.
    """

    top_k: int | None = 1
    function_to_apply: str | None = None
    truncation: bool | str = True

    def __post_init__(self) -> None:
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise BadRequest("Give a whole number from 1 up, or null for all labels.", "parameters.top_k")
        choice("function_to_apply", self.function_to_apply, [None, *FUNCTIONS])
        choice("truncation", self.truncation, [True, "error"])


class SequenceClassification(Task):
    """Answers `[{"label", "score"}, ...]` for each text, best label first, as transformers' pipeline does."""

    name = "sequence_classification"
    auto_class = "AutoModelForSequenceClassification"
    Params = ClassificationParams
    columns: ClassVar[dict[str, str]] = {"label": "BYTES", "score": "FP32"}

    def __init__(self, model_dir: Path, config: HandlerConfig) -> None:
        model = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=config.trust_remote_code)
        self.tokenizer = load_tokenizer(model_dir, config)
        self.pad_token_id = int(self.tokenizer.pad_token_id)
        self.max_tokens = token_limit(model, self.tokenizer, config.max_length)
        self.labels = read_labels(model_dir, model)
        self.function = default_function(model)

    def parse(self, payload: Json) -> list[Text]:
        """A text, a `{"text", "text_pair"}` object, or a list of either."""
        if not isinstance(payload, list):
            return [_parse_one(payload, "")]
        if not payload:
            raise BadRequest("The list is empty: send at least one text.")
        return [_parse_one(entry, f"[{i}]") for i, entry in enumerate(payload)]

    def size(self, item: Text) -> int:
        """Return the item's characters."""
        return len(item.text) + len(item.pair or "")

    def encode(self, items: Sequence[Text], params: ClassificationParams) -> Batch:
        """Tokenise all items in one call, and what is too long again, cut. Tensors are [items, tokens]."""
        rows = self._tokenise(items)
        empty = BadRequest("The text has nothing that this model reads: send other text.")
        if nothing := {i: empty for i, ids in enumerate(rows["input_ids"]) if not ids}:
            raise Refused(nothing)
        too_long = {i: len(ids) for i, ids in enumerate(rows["input_ids"]) if len(ids) > self.max_tokens}
        if too_long and params.truncation == "error":
            raise Refused({i: self._refusal(tokens) for i, tokens in too_long.items()})
        if too_long:
            cut = self._tokenise([items[i] for i in too_long], truncation=True, max_length=self.max_tokens)
            for name, values in rows.items():
                for i, value in zip(too_long, cut[name], strict=True):
                    values[i] = value
        padded = self.tokenizer.pad(rows, padding="longest", return_tensors="pt")
        return Batch(
            tensors=dict(padded),
            owner=range(len(items)),
            truncated={i: Truncation(tokens, len(rows["input_ids"][i])) for i, tokens in too_long.items()},
        )

    def decode(self, outputs: Tensors, batch: Batch, params: ClassificationParams) -> list[Json]:
        """From logits [items, labels] to the best `top_k` records of each item."""
        scores = FUNCTIONS[params.function_to_apply or self.function](outputs["logits"])
        count = min(params.top_k or len(self.labels), len(self.labels))
        best = scores.topk(count, dim=-1)
        return [
            [{"label": self.labels[i], "score": score} for i, score in zip(indices, values, strict=True)]
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def brief(self, result: Json) -> str:
        """Return the best label, as TorchServe's example answers; of a single one, which says nothing, the score."""
        return str(result[0]["label" if len(self.labels) > 1 else "score"])

    def samples(self) -> list[Text]:
        """Return one short text and one that fills the model."""
        return [Text("a"), Text("a " * self.max_tokens)]

    def describe(self) -> dict[str, Json]:
        """Return labels in the order of the model's outputs, and limits."""
        return {"labels": self.labels, "function_to_apply": self.function, "max_tokens": self.max_tokens}

    def _tokenise(self, items: Sequence[Text], **options: Any) -> dict[str, list[list[int]]]:  # noqa: ANN401
        """Token ids and their companions, by name, one unpadded list per item."""
        texts = [item.text if item.pair is None else (item.text, item.pair) for item in items]
        # verbose=False: transformers would log a warning for what we report to the client
        return dict(self.tokenizer(texts, verbose=False, **options))

    def _refusal(self, tokens: int) -> Unprocessable:
        return Unprocessable(
            f"The text has {tokens} tokens, the model takes {self.max_tokens}: "
            "shorten it, or leave parameters.truncation out to have it cut."
        )


def read_labels(model_dir: Path, model: PretrainedConfig) -> list[str]:
    """Return the label of each output: the model's own, or those of an index_to_name.json in its folder."""
    count = int(model.num_labels or 0)
    names: dict[Any, str] = dict(model.id2label or {})
    renamed = model_dir / "index_to_name.json"
    if renamed.exists():
        names = json.loads(renamed.read_text(encoding="utf-8"))
        if not isinstance(names, dict) or sorted(names) != sorted(map(str, range(count))):
            raise ConfigError(f'index_to_name.json must name each of the {count} labels: {{"0": "name", ...}}.')
        names = {int(index): name for index, name in names.items()}
    if any(index not in names for index in range(count)):
        raise ConfigError(f"id2label in config.json must name the labels 0 to {count - 1}: mend it.")
    return [str(names[index]) for index in range(count)]


def default_function(model: PretrainedConfig) -> str:
    """Return how scores come from logits where a request does not say, by transformers' text-classification rule."""
    if model.problem_type == "regression":
        return "none"
    one_by_one = model.problem_type == "multi_label_classification" or model.num_labels == 1
    return "sigmoid" if one_by_one else "softmax"


def _parse_one(entry: Json, where: str) -> Text:
    """One text or pair. `where` is its place in the payload, for the error's field."""
    if isinstance(entry, dict):
        key = next((key for key in TEXT_KEYS if key in entry), "text")
        for name in entry:
            if name not in (key, "text_pair", "target"):  # target: what to explain, of no effect on a prediction
                raise BadRequest("Unknown key; a text object has text and text_pair.", _join(where, name))
        pair = entry.get("text_pair")
        return Text(
            text=_text(entry.get(key), _join(where, key)),
            pair=None if pair is None else _text(pair, _join(where, "text_pair")),
        )
    return Text(_text(entry, where))


def _text(value: Json, where: str) -> str:
    if not isinstance(value, str):
        raise BadRequest("Give a text: a JSON string.", where)
    if not value.strip():
        raise BadRequest("The text is empty.", where)
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair; no tokenizer takes it
        raise BadRequest("The text holds half a character (a lone surrogate); send valid Unicode.", where) from None
    return value


def _join(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)
