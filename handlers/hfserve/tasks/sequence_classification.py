"""Texts, or pairs of texts, to labels with scores: one label of several, several at once, or a regression's number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from hfserve.config import HandlerConfig
from hfserve.errors import BadRequest, Unprocessable
from hfserve.tasks.base import Batch, Json, Model, Refused, Target, Task, Tensors, Truncation, choice, count, one_by_one
from hfserve.tasks.inputs import each, join, refuse_other_keys, text, text_key
from hfserve.tasks.labels import find_label, read_labels
from hfserve.tasks.pieces import encoded_row, log_odds, pieces
from hfserve.tasks.tokens import load_tokenizer, token_limit

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
        count("top_k", self.top_k, or_null="all labels")
        choice("function_to_apply", self.function_to_apply, [None, *FUNCTIONS])
        choice("truncation", self.truncation, [True, "error"])


class SequenceClassification(Task):
    """Answers `[{"label", "score"}, ...]` for each text, best label first, as transformers' pipeline does."""

    name = "sequence_classification"
    auto_class = "AutoModelForSequenceClassification"
    several = False
    Params = ClassificationParams
    columns: ClassVar[dict[str, str]] = {"label": "BYTES", "score": "FP32"}

    def __init__(self, model_dir: Path, config: HandlerConfig) -> None:
        model = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=config.trust_remote_code)
        self.tokenizer = load_tokenizer(model_dir, config)
        self.pad_token_id = int(self.tokenizer.pad_token_id)
        self.max_tokens = token_limit(model, self.tokenizer, config.max_length)
        self.labels = read_labels(model_dir, model)
        self.function = default_function(model)

    def parse(self, payload: Json, params: ClassificationParams) -> dict[str, Text]:
        """A text, a `{"text", "text_pair"}` object, or a list of either."""
        return each(payload, _parse_one)

    def size(self, item: Text) -> int:
        """Return the item's characters."""
        return len(item.text) + len(item.pair or "")

    def encode(self, items: Sequence[Text], params: ClassificationParams) -> Batch:
        """Tokenise all items in one call, and what is too long again, cut. Tensors are [items, tokens].

        Notes are (item, the tokenizer's account of its tokens, or None where it gives none).
        """
        rows, encodings = self._tokenise(items)
        empty = BadRequest("The text has nothing that this model reads: send other text.")
        if nothing := {i: empty for i, ids in enumerate(rows["input_ids"]) if not ids}:
            raise Refused(nothing)
        too_long = {i: len(ids) for i, ids in enumerate(rows["input_ids"]) if len(ids) > self.max_tokens}
        if too_long and params.truncation == "error":
            raise Refused({i: self._refusal(tokens) for i, tokens in too_long.items()})
        if too_long:
            cut, shorter = self._tokenise([items[i] for i in too_long], truncation=True, max_length=self.max_tokens)
            for name, values in rows.items():
                for i, value in zip(too_long, cut[name], strict=True):
                    values[i] = value
            for i, encoding in zip(too_long, shorter, strict=True):
                encodings[i] = encoding
        padded = self.tokenizer.pad(rows, padding="longest", return_tensors="pt")
        return Batch(
            tensors=dict(padded),
            owner=range(len(items)),
            notes=list(zip(items, encodings, strict=True)),
            truncated={i: Truncation(tokens, len(rows["input_ids"][i])) for i, tokens in too_long.items()},
        )

    def decode(self, outputs: Tensors, batch: Batch, params: ClassificationParams) -> list[Json]:
        """From logits [items, labels] to the best `top_k` records of each item."""
        scores = FUNCTIONS[params.function_to_apply or self.function](outputs["logits"])
        kept = min(params.top_k or len(self.labels), len(self.labels))
        best = scores.topk(kept, dim=-1)
        return [
            [{"label": self.labels[i], "score": score} for i, score in zip(indices, values, strict=True)]
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def texts(self, item: Text) -> dict[str, str]:
        """Return the text, and its partner if it has one."""
        return {"text": item.text} | ({} if item.pair is None else {"text_pair": item.pair})

    def targets(
        self, model: Model, batch: Batch, params: ClassificationParams, asked: Sequence[Json]
    ) -> list[list[Target]]:
        """One target an item: the label asked for by name or index, or the best."""
        outputs = self.forward(model, batch, params)
        scores = FUNCTIONS[params.function_to_apply or self.function](outputs["logits"])
        best = scores.argmax(dim=-1).tolist()

        def find(i: int) -> list[Target]:
            item, encoding = batch.notes[i]
            index = best[i] if asked[i] is None else find_label(self.labels, asked[i])
            record = {"label": self.labels[index], "score": float(scores[i, index])}
            tokens = pieces(encoding, self.texts(item))
            row = encoded_row(self.tokenizer, encoding)
            return [Target(self.labels[index], record, row, tokens, self.left(encoding), index)]

        return one_by_one(find, len(batch.notes))

    def scores(self, outputs: Tensors, targets: Sequence[Target]) -> Tensor:
        """Return the log-odds of one label of several; of labels that each stand alone the logit, which is the same."""
        logits = outputs["logits"]
        places = torch.tensor([target.place for target in targets], device=logits.device)
        if self.function != "softmax":
            return logits.gather(1, places[:, None])[:, 0]
        chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, places[:, None], value=True)
        return log_odds(logits, chosen, ~chosen)

    def brief(self, result: Json) -> str:
        """Return the best label, as TorchServe's example answers; of a single one, which says nothing, the score."""
        return str(result[0]["label" if len(self.labels) > 1 else "score"])

    def samples(self) -> list[Text]:
        """Return one short text and one that fills the model."""
        return [Text("a"), Text("a " * self.max_tokens)]

    def describe(self) -> dict[str, Json]:
        """Return labels in the order of the model's outputs, and limits."""
        return {"labels": self.labels, "function_to_apply": self.function, "max_tokens": self.max_tokens}

    def _tokenise(
        self,
        items: Sequence[Text],
        **options: Any,  # noqa: ANN401
    ) -> tuple[dict[str, list[list[int]]], list[Any]]:
        """Token ids and their companions, by name, one unpadded list per item; and the tokenizer's account of each."""
        texts = [item.text if item.pair is None else (item.text, item.pair) for item in items]
        # verbose=False: transformers would log a warning for what we report to the client
        rows = self.tokenizer(texts, verbose=False, **options)
        return dict(rows), list(rows.encodings or [None] * len(items))

    def _refusal(self, tokens: int) -> Unprocessable:
        return Unprocessable(
            f"The text has {tokens} tokens, the model takes {self.max_tokens}: "
            "shorten it, or leave parameters.truncation out to have it cut."
        )


def default_function(model: PretrainedConfig) -> str:
    """Return how scores come from logits where a request does not say, by transformers' text-classification rule."""
    if model.problem_type == "regression":
        return "none"
    one_by_one = model.problem_type == "multi_label_classification" or model.num_labels == 1
    return "sigmoid" if one_by_one else "softmax"


def _parse_one(entry: Json, place: str) -> Text:
    """Read one text or pair."""
    if not isinstance(entry, dict):
        return Text(text(entry, place))
    key, pair = text_key(entry), entry.get("text_pair")
    refuse_other_keys(entry, place, (key, "text_pair"), "a text object has text and text_pair")
    return Text(
        text=text(entry.get(key), join(place, key)),
        pair=None if pair is None else text(pair, join(place, "text_pair")),
    )
