"""Questions to spans of the context that is sent with them, with exact places and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch import Tensor
from transformers import AutoConfig

from hfserve.config import HandlerConfig
from hfserve.errors import BadRequest, ConfigError, RequestError, Unprocessable
from hfserve.tasks.base import Batch, Json, Model, Refused, Task, Tensors, choice, count
from hfserve.tasks.inputs import each, join, refuse_other_keys, text
from hfserve.tasks.spans import Side, answers, best, side
from hfserve.tasks.tokens import load_tokenizer, token_limit
from hfserve.tasks.windows import Window, cut, prepare, rows_by_item, without_padding


class Question(NamedTuple):
    """One item."""

    question: str
    context: str


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
        item: Question = batch.notes[rows[0]][0]
        windows: list[Window] = [batch.notes[row][1] for row in rows]
        starts, ends = (self._side(outputs[name], rows, windows, params) for name in ("start_logits", "end_logits"))
        spans = best(starts, ends, params.max_answer_len)
        found = list(islice(answers(item.context, windows, spans, params.align_to_words), params.top_k))
        if starts.nothing is not None and ends.nothing is not None:
            score = float((starts.nothing + ends.nothing).exp())
            found.append({"answer": "", "score": score, "start": 0, "end": 0})
            found.sort(key=lambda record: -record["score"])
        return found[0] if params.top_k == 1 else found[: params.top_k]

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
