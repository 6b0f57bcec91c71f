"""Texts to entities: every token judged, neighbours of one label joined, with exact places in the text as sent."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig

from hfserve.config import HandlerConfig
from hfserve.errors import BadRequest, Unprocessable
from hfserve.tasks.base import Batch, Json, Model, Refused, Target, Task, Tensors, choice, count, one_by_one
from hfserve.tasks.entities import STRATEGIES, Token, kind
from hfserve.tasks.inputs import each, lone_text, stretch, text
from hfserve.tasks.labels import find_label, read_labels
from hfserve.tasks.pieces import Piece, Row, encoded_row, log_odds, pieces, trimmed
from hfserve.tasks.tokens import load_tokenizer, token_limit
from hfserve.tasks.windows import Window, cut, kept, prepare, rows_by_item, without_padding


@dataclass(frozen=True)
class Passage:
    """One item: a text, and its words where it came split into them."""

    text: str
    words: tuple[str, ...] | None = None


@dataclass(frozen=True)
class EntityParams:
    """What a request may ask for.

    aggregation_strategy: none (every token), simple, first, average or max: how tokens become entities.
    ignore_labels: labels that are left out of the answer.
    stride: tokens that neighbouring windows share where a text is longer than the model; null for a quarter of it.
    is_split_into_words: each input is a list of words; offsets count in the words joined by `delimiter`.
    """

    aggregation_strategy: str = "simple"
    ignore_labels: Collection[str] = ("O",)
    stride: int | None = None
    is_split_into_words: bool = False
    delimiter: str = " "

    def __post_init__(self) -> None:
        choice("aggregation_strategy", self.aggregation_strategy, list(STRATEGIES))
        choice("is_split_into_words", self.is_split_into_words, [True, False])
        count("stride", self.stride, or_null="a quarter of what the model takes", least=0)
        if not _are_labels(self.ignore_labels):
            raise BadRequest("Give a list of labels.", "parameters.ignore_labels")
        if not isinstance(self.delimiter, str):
            raise BadRequest("Give a text.", "parameters.delimiter")
        object.__setattr__(self, "ignore_labels", frozenset(self.ignore_labels))  # parameters are compared by hash


def _are_labels(value: object) -> bool:
    return isinstance(value, list | tuple | frozenset) and all(isinstance(label, str) for label in value)


class Judged(NamedTuple):
    """A text and its tokens, each with its (row, column) in the batch and its scores [tokens, labels].

    rows: what targets share of a row of the batch, once the first of them is made.
    """

    item: Passage
    tokens: Sequence[Token]
    places: Sequence[tuple[int, int]]
    scores: Tensor
    rows: dict[int, tuple[Row, list[Piece]]]

    def of(self, record: Json) -> list[int]:
        """Return the tokens of a record; those of a blank have no characters, and only such records have them."""
        if "index" in record:
            return [record["index"] - self.tokens[0].index]
        start, end = record["start"], record["end"]
        first = bisect_left(self.tokens, start, key=lambda token: token.start)  # they are in the order of the text
        last = bisect_right(self.tokens, end, key=lambda token: token.start)
        inside = [i for i in range(first, last) if self.tokens[i].end <= end]
        return [i for i in inside if self.tokens[i].start < self.tokens[i].end or start == end]

    def over(self, start: int, end: int) -> list[int]:
        """Return the tokens that share characters with a stretch of the text."""
        return [i for i, t in enumerate(self.tokens) if t.start < end and t.end > start]


class TokenClassification(Task):
    """Answers `[{"entity_group", "score", "word", "start", "end"}, ...]` for each text, in the order of the text.

    Of a text in several windows each token is judged once, and entities are joined over the text as a whole: none is
    lost or doubled where two windows meet.
    """

    name = "token_classification"
    auto_class = "AutoModelForTokenClassification"
    Params = EntityParams
    columns: ClassVar[dict[str, str]] = {
        "entity": "BYTES",
        "entity_group": "BYTES",
        "score": "FP32",
        "index": "INT64",
        "word": "BYTES",
        "start": "INT64",
        "end": "INT64",
    }
    ragged = True

    def __init__(self, model_dir: Path, config: HandlerConfig) -> None:
        model = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=config.trust_remote_code)
        self.tokenizer = load_tokenizer(model_dir, config)
        prepare(self.tokenizer)
        self.pad_token_id = int(self.tokenizer.pad_token_id)
        self.max_tokens = token_limit(model, self.tokenizer, config.max_length)
        self.room = self.max_tokens - self.tokenizer.num_special_tokens_to_add(pair=False)
        self.labels = read_labels(model_dir, model)
        # with such a prefix, as WordPiece's ##, a token itself says whether it goes on with a word
        self.marked = bool(getattr(self.tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None))

    def parse(self, payload: Json, params: EntityParams) -> dict[str, Passage]:
        """A text, a `{"text"}` object, or a list of either; or a list of words, or a list of such lists."""
        if not params.is_split_into_words:
            return each(payload, lambda entry, place: Passage(lone_text(entry, place)))
        if isinstance(payload, list) and payload and all(isinstance(entry, list) for entry in payload):
            return each(payload, lambda entry, place: _joined(entry, place, params.delimiter))
        return {"": _joined(payload, "", params.delimiter)}

    def holds(self, payload: Json, params: EntityParams) -> int:
        """See `Task.holds`; a list of words is one input."""
        words = params.is_split_into_words and isinstance(payload, list) and not isinstance((payload or [""])[0], list)
        return 1 if words else super().holds(payload, params)

    def check(self, params: EntityParams) -> None:
        """Refuse a stride of more than half a window: a long text would become a window a token."""
        if self._stride(params) > self.room // 2:
            raise BadRequest(f"Give {self.room // 2} or less, half of a window.", "parameters.stride")

    def size(self, item: Passage) -> int:
        """Return the item's characters."""
        return len(item.text)

    def encode(self, items: Sequence[Passage], params: EntityParams) -> Batch:
        """Tokenise all items in one call. Tensors are [windows, tokens]; notes are (item, window)."""
        tensors, owner, windows = cut(
            self.tokenizer,
            [[item.text if item.words is None else list(item.words) for item in items]],
            part=0,
            is_split_into_words=params.is_split_into_words,
            truncation=True,
            max_length=self.max_tokens,
            stride=self._stride(params),
        )
        empty = BadRequest("The text has nothing that this model reads: send other text.")
        if nothing := {i: empty for i, window in zip(owner, windows, strict=True) if not window.columns}:
            raise Refused(nothing)
        return Batch(tensors, owner, [(items[i], window) for i, window in zip(owner, windows, strict=True)])

    def decode(self, outputs: Tensors, batch: Batch, params: EntityParams) -> list[Json]:
        """From logits [windows, tokens, labels] to the entities of each item."""
        scores = torch.softmax(outputs["logits"], dim=-1)
        return [self._entities(mine, scores, batch, params) for mine in rows_by_item(batch)]

    def proof(self, model: Model, batch: Batch) -> Tensors:
        """See `Task.proof`."""
        return without_padding(self.forward(model, batch, self.trial()), batch, self.pad_token_id)

    def brief(self, result: Json) -> str:
        """Return `[["Ada", "PER"], ...]`, as TorchServe's example answers."""
        return json.dumps(
            [[record["word"], record.get("entity_group") or record["entity"]] for record in result], ensure_ascii=False
        )

    def samples(self) -> list[Passage]:
        """Return one short text and one that fills the model."""
        return [Passage("a"), Passage("a " * self.room)]

    def describe(self) -> dict[str, Json]:
        """Return labels in the order of the model's outputs, and limits."""
        return {"labels": self.labels, "max_tokens": self.max_tokens, "aggregation_strategies": list(STRATEGIES)}

    def _stride(self, params: EntityParams) -> int:
        return self.room // 4 if params.stride is None else params.stride

    def texts(self, item: Passage) -> dict[str, str]:
        """Return the text."""
        return {"text": item.text}

    def targets(self, model: Model, batch: Batch, params: EntityParams, asked: Sequence[Json]) -> list[list[Target]]:
        """One target for each entity found; or for those of a label, or for one token or stretch of text.

        A request's target is a label, {"start", "end", "label"} with the label's default the likeliest, or, as in
        TorchServe's example, [token, label].
        """
        scores = torch.softmax(self.forward(model, batch, params)["logits"], dim=-1)
        texts = [self._judged(mine, scores, batch, params) for mine in rows_by_item(batch)]
        return one_by_one(lambda i: self._targets(texts[i], batch, params, asked[i]), len(texts))

    def scores(self, outputs: Tensors, targets: Sequence[Target]) -> Tensor:
        """Return the mean log-odds of the target's labels over its tokens [rows]."""
        logits = outputs["logits"]
        pairs = [(row, column % logits.shape[1]) for row, target in enumerate(targets) for column in target.place[0]]
        rows, columns = torch.tensor(pairs, device=logits.device).T
        chosen = torch.zeros(len(targets), logits.shape[2], dtype=torch.bool, device=logits.device)
        for row, target in enumerate(targets):
            chosen[row, target.place[1]] = True
        odds = log_odds(logits[rows, columns], chosen[rows], ~chosen[rows])
        return odds.new_zeros(len(targets)).index_add(0, rows, odds) / torch.bincount(rows, minlength=len(targets))

    def _entities(self, rows: Sequence[int], scores: Tensor, batch: Batch, params: EntityParams) -> list[Json]:
        """Put the windows of one text together, and read its entities."""
        return self._read(self._judged(rows, scores, batch, params), params)

    def _read(self, judged: Judged, params: EntityParams) -> list[Json]:
        found = STRATEGIES[params.aggregation_strategy](
            judged.tokens, judged.scores, self.labels, self.tokenizer.convert_tokens_to_string
        )
        return [r for r in found if not {r.get("entity"), r.get("entity_group")}.intersection(params.ignore_labels)]

    def _judged(self, rows: Sequence[int], scores: Tensor, batch: Batch, params: EntityParams) -> Judged:
        """Put the windows of one text together: each token once, from the window that judges it."""
        item: Passage = batch.notes[rows[0]][0]
        windows: list[Window] = [batch.notes[row][1] for row in rows]
        starts = _starts(item, params.delimiter)
        tokens: list[Token] = []
        places: list[tuple[int, int]] = []
        judged: list[Tensor] = []
        for row, window, keep in zip(rows, windows, kept(windows, self._stride(params)), strict=True):
            judged.append(scores[row, window.columns.start : window.columns.stop][keep])
            places += [(row, column) for column in window.columns[keep]]
            tokens += self._tokens(item, window, keep, windows[0].columns.start + len(tokens), starts)
        return Judged(item, tokens, places, torch.cat(judged), {})

    def _targets(self, judged: Judged, batch: Batch, params: EntityParams, asked: Json) -> list[Target]:
        """Choose what to explain of one text."""
        if isinstance(asked, dict):
            return [self._stretch(judged, batch, params, asked)]
        if isinstance(asked, list):
            return [self._token(judged, batch, params, asked)]
        records = self._read(judged, params if asked is None else replace(params, ignore_labels=()))
        if asked is not None:
            wanted = self._kind(asked)
            records = [r for r in records if kind(r.get("entity_group") or r["entity"]) == wanted]
        return [self._target(judged, judged.of(r), batch, params, r) for r in records]

    def _stretch(self, judged: Judged, batch: Batch, params: EntityParams, asked: dict[str, Json]) -> Target:
        """Explain the label of a stretch of the text."""
        start, end = stretch(asked, ("start", "end", "label"), judged.item.text)
        tokens = judged.over(start, end)
        if not tokens:
            raise Unprocessable("The model sees nothing between start and end: give the place of a word.", "target")
        return self._target(judged, tokens, batch, params, self._record(judged, tokens, asked.get("label")))

    def _token(self, judged: Judged, batch: Batch, params: EntityParams, asked: list[Json]) -> Target:
        """Explain a label of one token, as TorchServe's example asks for it: special tokens counted."""
        if len(asked) != 2 or type(asked[0]) is not int:
            raise BadRequest("Give [token, label], the number of a token and a label.", "target")
        tokens = [i for i, token in enumerate(judged.tokens) if token.index == asked[0]]
        if not tokens:
            first, last = judged.tokens[0].index, judged.tokens[-1].index
            raise Unprocessable(f"No such token of the text: give a number from {first} to {last}.", "target")
        return self._target(judged, tokens, batch, params, self._record(judged, tokens, asked[1]))

    def _record(self, judged: Judged, tokens: Sequence[int], label: Json) -> Json:
        """Return what tokens are judged to be, or how likely a label is that they are asked for."""
        mean = judged.scores[list(tokens)].mean(dim=0)
        name = self._kind(int(mean.argmax()) if label is None else label)
        seen = [judged.tokens[i] for i in tokens]
        start, end = seen[0].start, seen[-1].end
        score = float(mean[self._indices(name)].sum())
        return {
            "entity_group": name, "score": score, "word": judged.item.text[start:end], "start": start, "end": end
        }  # fmt: skip

    def _kind(self, asked: Json) -> str:
        """Return the kind of a label asked for by its name, its kind or its index."""
        return str(asked) if asked in map(kind, self.labels) else kind(self.labels[find_label(self.labels, asked)])

    def _indices(self, name: str) -> list[int]:
        """Return the labels that a name stands for: one, or all of its kind."""
        exactly = [i for i, label in enumerate(self.labels) if label == name]
        return exactly or [i for i, label in enumerate(self.labels) if kind(label) == name]

    def _target(
        self, judged: Judged, tokens: Sequence[int], batch: Batch, params: EntityParams, record: Json
    ) -> Target:
        """Make the target of an entity's tokens; of those in two windows, of the window with more of them."""
        rows = [judged.places[i][0] for i in tokens]
        row = max(rows, key=rows.count)
        item, window = batch.notes[row]
        name = record.get("entity_group") or record["entity"]
        first = self.left(batch.tensors["input_ids"][row])
        columns = [judged.places[i][1] + first for i in tokens if judged.places[i][0] == row]
        if row not in judged.rows:
            tokens_of_row = pieces(window.encoding, self.texts(item), _starts(item, params.delimiter))
            judged.rows[row] = encoded_row(self.tokenizer, window.encoding), tokens_of_row
        return Target(name, record, *judged.rows[row], self.left(window.encoding), (columns, self._indices(name)))

    def _tokens(self, item: Passage, window: Window, keep: slice, first: int, starts: Sequence[int]) -> Iterator[Token]:
        """Say of each token where it stands, and whether it goes on with a word.

        starts: where in the text each word begins that the item came split into; offsets count from there.
        """
        ids = window.ids[keep]
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        before: int | None = None
        for i, (number, piece, (start, end), word) in enumerate(
            zip(ids, pieces, window.offsets[keep], window.words[keep], strict=True)
        ):
            moved = starts[word] if starts and word is not None else 0
            place = trimmed(item.text, start + moved, end + moved)
            if number == self.tokenizer.unk_token_id:
                yield Token(item.text[slice(*place)], *place, first + i, continues=False)
            else:
                goes_on = word == before if starts and not self.marked else self._continues(item.text, piece, *place)
                yield Token(piece, *place, first + i, goes_on)
            before = word

    def _continues(self, text: str, piece: str, start: int, end: int) -> bool:
        """Whether a token goes on with a word, by the rules of transformers' pipeline."""
        if self.marked:
            return len(piece) != end - start
        return start > 0 and " " not in text[start - 1 : start + 1]


def _joined(entry: Json, place: str, delimiter: str) -> Passage:
    if not isinstance(entry, list) or not entry:
        raise BadRequest("Give a list of words, as parameters.is_split_into_words says.", place)
    words = tuple(text(word, f"{place}[{i}]") for i, word in enumerate(entry))
    return Passage(delimiter.join(words), words)


def _starts(item: Passage, delimiter: str) -> list[int]:
    """Return where in the joined text each word begins."""
    if item.words is None:
        return []
    return list(accumulate((len(word) + len(delimiter) for word in item.words[:-1]), initial=0))
