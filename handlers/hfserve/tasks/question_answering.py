"""Questions to spans of the context that is sent with them, with exact places and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig

from hfserve.config import HandlerConfig
from hfserve.errors import BadRequest, ConfigError, RequestError, Unprocessable
from hfserve.tasks.base import Batch, Json, Model, Refused, Target, Task, Tensors, choice, count, one_by_one
from hfserve.tasks.inputs import each, join, refuse_other_keys, stretch, text, whole_number
from hfserve.tasks.pieces import encoded_row, log_odds, pieces
from hfserve.tasks.spans import Side, Span, answers, best, side, span_of
from hfserve.tasks.tokens import load_tokenizer, token_limit
from hfserve.tasks.windows import Window, cut, prepare, rows_by_item, without_padding


class Question(NamedTuple):
    """One item."""

    question: str
    context: str


ENDS = {"start": "start_logits", "end": "end_logits"}
MOST_ANSWERS, LONGEST_ANSWER = 100, 512  # all spans of a context are compared


@dataclass(frozen=True)
class AnswerParams:
    """What a request may ask for.

    top_k: how many answers, best first; with more than one the result is a list.
    max_answer_len: most tokens of an answer.
    handle_impossible_answer: let "" compete, the answer of a model that was trained to say that there is none.
    doc_stride: tokens that neighbouring windows share where a context is longer than the model; null for a quarter.
    align_to_words: widen an answer that begins or ends inside of a word.
    """

    top_k: int = 1
    max_answer_len: int = 15
    handle_impossible_answer: bool = False
    doc_stride: int | None = None
    align_to_words: bool = True

    def __post_init__(self) -> None:
        count("top_k", self.top_k, most=MOST_ANSWERS)
        count("max_answer_len", self.max_answer_len, most=LONGEST_ANSWER)
        choice("handle_impossible_answer", self.handle_impossible_answer, [True, False])
        count("doc_stride", self.doc_stride, or_null="a quarter of what the model takes", least=0)
        choice("align_to_words", self.align_to_words, [True, False])


class QuestionAnswering(Task):
    """Answers `{"answer", "score", "start", "end"}`, the likeliest span of the context.

    A span's score is the probability of its first token times that of its last. Of a context in several windows the
    probabilities are of all windows together (shared normalisation: Clark and Gardner, arXiv:1710.10723), so that they
    can be compared; in one window they are what the model was trained for.
    """

    name = "question_answering"
    auto_class = "AutoModelForQuestionAnswering"
    Params = AnswerParams
    columns: ClassVar[dict[str, str]] = {"answer": "BYTES", "score": "FP32", "start": "INT64", "end": "INT64"}
    ragged = True  # a short context has fewer spans than top_k may ask for

    def __init__(self, model_dir: Path, config: HandlerConfig) -> None:
        model = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=config.trust_remote_code)
        self.tokenizer = load_tokenizer(model_dir, config)
        prepare(self.tokenizer)
        self.pad_token_id = int(self.tokenizer.pad_token_id)
        self.max_tokens = token_limit(model, self.tokenizer, config.max_length)
        self.special = self.tokenizer.num_special_tokens_to_add(pair=True)
        # models that pad on the left, as XLNet, were trained with the question last
        self.question_first = self.tokenizer.padding_side == "right"
        if self._longest_question(AnswerParams()) < 1:
            raise ConfigError(f"handler.max_length is {self.max_tokens}, too little for a question and a context.")

    def parse(self, payload: Json, params: AnswerParams) -> dict[str, Question]:
        """A `{"question", "context"}` object or a list of them; a list of questions may share one context."""
        if isinstance(payload, dict) and isinstance(payload.get("question"), list):
            return _several(payload)
        return each(payload, _parse_one)

    def holds(self, payload: Json, params: AnswerParams) -> int:
        """See `Task.holds`; a list of questions is as many inputs."""
        several = isinstance(payload, dict) and isinstance(payload.get("question"), list)
        return len(payload["question"]) if several else super().holds(payload, params)

    def check(self, params: AnswerParams) -> None:
        """Refuse a stride that leaves no room for a question."""
        if self._longest_question(params) < 1:
            most = (self.max_tokens - self.special - 1) // 2
            raise BadRequest(f"Give {most} or less: windows also hold the question.", "parameters.doc_stride")

    def size(self, item: Question) -> int:
        """Return the item's characters."""
        return len(item.question) + len(item.context)

    def encode(self, items: Sequence[Question], params: AnswerParams) -> Batch:
        """Tokenise all pairs in one call. Tensors are [windows, tokens]; notes are (item, window)."""
        self._refuse_long_questions(items, params)
        questions, contexts = [item.question for item in items], [item.context for item in items]
        tensors, owner, windows = cut(
            self.tokenizer,
            (questions, contexts) if self.question_first else (contexts, questions),
            part=1 if self.question_first else 0,
            truncation="only_second" if self.question_first else "only_first",
            max_length=self.max_tokens,
            stride=self._stride(params),
        )
        empty: RequestError = BadRequest("The context has nothing that this model reads: send another.")
        if nothing := {i: empty for i, window in zip(owner, windows, strict=True) if not window.columns}:
            raise Refused(nothing)
        return Batch(tensors, owner, [(items[i], window) for i, window in zip(owner, windows, strict=True)])

    def decode(self, outputs: Tensors, batch: Batch, params: AnswerParams) -> list[Json]:
        """From start and end logits [windows, tokens] to the best answers of each item."""
        return [self._answers(mine, outputs, batch, params) for mine in rows_by_item(batch)]

    def texts(self, item: Question) -> dict[str, str]:
        """Return question and context."""
        names = ("question", "context") if self.question_first else ("context", "question")
        return {name: getattr(item, name) for name in names}

    def targets(self, model: Model, batch: Batch, params: AnswerParams, asked: Sequence[Json]) -> list[list[Target]]:
        """Two targets an item, the first and the last token of an answer.

        A request's target is the rank of the answer, 0 for the best, or {"start", "end"}, a stretch of the context.
        """
        outputs = self.forward(model, batch, params)
        items = rows_by_item(batch)
        return one_by_one(lambda i: self._targets(items[i], outputs, batch, params, asked[i]), len(items))

    def scores(self, outputs: Tensors, targets: Sequence[Target]) -> Tensor:
        """Return the log-odds [rows] of an end of the answer against all other tokens of its window's context."""
        logits = torch.stack([outputs[target.place[0]][row] for row, target in enumerate(targets)])
        chosen, against = (torch.zeros_like(logits, dtype=torch.bool) for _ in range(2))
        for row, target in enumerate(targets):
            _, column, context = target.place
            chosen[row, column], against[row, context] = True, True
        return log_odds(logits, chosen, against & ~chosen)

    def proof(self, model: Model, batch: Batch) -> Tensors:
        """See `Task.proof`."""
        return without_padding(self.forward(model, batch, self.trial()), batch, self.pad_token_id)

    def brief(self, result: Json) -> str:
        """Return the best answer, as TorchServe's example does."""
        best = result[0] if isinstance(result, list) else result
        return str(best["answer"])

    def samples(self) -> list[Question]:
        """Return a short question, and one on a context that fills the model."""
        return [Question("a", "a"), Question("a", "a " * (self.max_tokens - self.special - 1))]

    def describe(self) -> dict[str, Json]:
        """Return limits."""
        return {"max_tokens": self.max_tokens}

    def goldens(self) -> list[Json]:
        """Return ten questions on four contexts."""
        return [{"question": question, "context": context} for context, questions in GOLDENS for question in questions]

    def _stride(self, params: AnswerParams) -> int:
        return self.max_tokens // 4 if params.doc_stride is None else params.doc_stride

    def _longest_question(self, params: AnswerParams) -> int:
        """Return how many tokens a question may have: windows must get on, or there would be one for each token."""
        stride = self._stride(params)
        return self.max_tokens - self.special - stride - max(stride, self.max_tokens // 8, 1)

    def _refuse_long_questions(self, items: Sequence[Question], params: AnswerParams) -> None:
        """Refuse a question that leaves a window too little room for its context."""
        most = self._longest_question(params)
        questions = self.tokenizer([item.question for item in items], add_special_tokens=False, verbose=False)
        lengths = {i: len(ids) for i, ids in enumerate(questions["input_ids"]) if len(ids) > most}
        if lengths:
            raise Refused({i: _too_long(length, most) for i, length in lengths.items()})

    def _answers(self, rows: Sequence[int], outputs: Tensors, batch: Batch, params: AnswerParams) -> Json:
        """Read the answers to one question out of the windows of its context."""
        found = [record for record, _ in self._found(rows, outputs, batch, params, params.top_k)]
        return found[0] if params.top_k == 1 else found

    def _found(
        self, rows: Sequence[int], outputs: Tensors, batch: Batch, params: AnswerParams, most: int
    ) -> list[tuple[Json, Span | None]]:
        """Return the best answers with their spans; there being none has no span."""
        item: Question = batch.notes[rows[0]][0]
        windows: list[Window] = [batch.notes[row][1] for row in rows]
        starts, ends = self._sides(rows, outputs, batch, params)
        spans = best(starts, ends, params.max_answer_len)
        found: list[tuple[Json, Span | None]] = list(
            islice(answers(item.context, windows, spans, params.align_to_words), most)
        )
        if starts.nothing is not None and ends.nothing is not None:
            score = float((starts.nothing + ends.nothing).exp())
            found.append(({"answer": "", "score": score, "start": 0, "end": 0}, None))
            found.sort(key=lambda answer: -answer[0]["score"])
        return found[:most]

    def _sides(self, rows: Sequence[int], outputs: Tensors, batch: Batch, params: AnswerParams) -> tuple[Side, Side]:
        windows: list[Window] = [batch.notes[row][1] for row in rows]
        starts, ends = (self._side(outputs[name], rows, windows, params) for name in ENDS.values())
        return starts, ends

    def _targets(
        self, rows: Sequence[int], outputs: Tensors, batch: Batch, params: AnswerParams, asked: Json
    ) -> list[Target]:
        """Choose the answer to explain: both its ends are explained."""
        find = self._stretch if isinstance(asked, dict) else self._ranked
        record, span = find(rows, outputs, batch, params, asked)
        row = rows[span.window if span else 0]
        item, window = batch.notes[row]
        first = self.left(batch.tensors["input_ids"][row])
        context = [column + first for column in window.columns]
        columns = (context[span.first], context[span.last]) if span else (window.special + first,) * 2
        inputs = encoded_row(self.tokenizer, window.encoding)
        tokens = pieces(window.encoding, self.texts(item))
        return [
            Target(name, record, inputs, tokens, self.left(window.encoding), (output, column, context))
            for (name, output), column in zip(ENDS.items(), columns, strict=True)
        ]

    def _ranked(
        self, rows: Sequence[int], outputs: Tensors, batch: Batch, params: AnswerParams, asked: Json
    ) -> tuple[Json, Span | None]:
        rank = 0 if asked is None else whole_number(asked)
        if type(rank) is not int:
            raise BadRequest('Give {"start", "end"} in the context, or the rank of an answer, 0 the best.', "target")
        if not 0 <= rank < MOST_ANSWERS:
            raise Unprocessable(f"Give the rank of an answer from 0, the best, to {MOST_ANSWERS - 1}.", "target")
        found = self._found(rows, outputs, batch, params, rank + 1)
        if rank >= len(found):
            raise Unprocessable(f"There are {len(found)} answers: give a rank below that.", "target")
        return found[rank]

    def _stretch(
        self, rows: Sequence[int], outputs: Tensors, batch: Batch, params: AnswerParams, asked: dict[str, Json]
    ) -> tuple[Json, Span | None]:
        """Take a stretch of the context for an answer, whatever the model thinks of it."""
        item: Question = batch.notes[rows[0]][0]
        start, end = stretch(asked, ("start", "end"), item.context)
        span = span_of([batch.notes[row][1] for row in rows], start, end)
        if span is None:
            raise Unprocessable("The model sees nothing between start and end: give the place of a word.", "target")
        starts, ends = self._sides(rows, outputs, batch, params)
        score = float((starts.tokens[span.window][span.first] + ends.tokens[span.window][span.last]).exp())
        return {"answer": item.context[start:end], "score": score, "start": start, "end": end}, span

    def _side(self, logits: Tensor, rows: Sequence[int], windows: Sequence[Window], params: AnswerParams) -> Side:
        own = [
            logits[row, window.columns.start : window.columns.stop] for row, window in zip(rows, windows, strict=True)
        ]
        nothing = [logits[row, window.special] for row, window in zip(rows, windows, strict=True)]
        return side(own, nothing if params.handle_impossible_answer else [])


def _parse_one(entry: Json, place: str) -> Question:
    if not isinstance(entry, dict):
        raise BadRequest('Give an object: {"question": "...", "context": "..."}.', place)
    refuse_other_keys(entry, place, ("question", "context"), "it takes question and context")
    question = text(entry.get("question"), join(place, "question"))
    return Question(question.strip(), text(entry.get("context"), join(place, "context")))


def _several(payload: dict[str, Json]) -> dict[str, Question]:
    """Read several questions on one context, or each on its own where there is a list of contexts too."""
    questions, contexts = payload["question"], payload.get("context")
    each_own = contexts if isinstance(contexts, list) else [contexts] * len(questions)
    if len(each_own) != len(questions):
        raise BadRequest(f"Give one context, or {len(questions)}, one for each question.", "context")
    one_by_one = [
        payload | {"question": question, "context": context}
        for question, context in zip(questions, each_own, strict=True)
    ]
    try:
        items = each(one_by_one, _parse_one)
    except RequestError as error:  # "[2].question" there is question[2] here
        place, _, name = error.field.partition(".")
        raise type(error)(error.message, name + place if isinstance(payload.get(name), list) else name) from None
    return {f"question{place}": item for place, item in items.items()}


def _too_long(tokens: int, most: int) -> Unprocessable:
    return Unprocessable(f"The question has {tokens} tokens, and may have {most}: shorten it.")


GOLDENS = (
    (
        "My name is Sarah and I live in London, but my brother David moved to Lisbon two years ago.",
        ("Where do I live?", "What is my brother's name?", "When did David move?"),
    ),
    (
        "The Danube rises in the Black Forest in Germany and flows 2,850 kilometres to the Black Sea.",
        ("How long is the Danube?", "Where does it rise?", "Which sea does it reach?"),
    ),
    (
        "Your order 4711 was sent on 3 May and will arrive by Friday. It cost 35.50 € because you chose express.",
        ("How much was it?", "When was the order sent?", "Why did it cost so much?"),
    ),
    ("Zoë bought crêpes at Café Müller.", ("Who bought crêpes?",)),
)
