"""A new task is one file and one line: this is the file."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from hfserve.config import parse_config
from hfserve.forms import Answer, Call, write
from hfserve.pace import Paced
from hfserve.pipeline import Pipeline
from hfserve.proof import make_goldens
from hfserve.tasks import TASKS
from hfserve.tasks.base import Batch, Target, Task, choice
from hfserve.tasks.inputs import each, lone_text
from hfserve.tasks.pieces import encoded_row, pieces
from hfserve.tasks.tokens import load_tokenizer

from tests import models


@dataclasses.dataclass(frozen=True)
class Params:
    loud: bool = False

    def __post_init__(self):
        choice("loud", self.loud, [True, False])


class Mood(Task):
    """The mean of a text's first vector."""

    name = "mood"
    auto_class = "AutoModel"
    Params = Params
    columns: ClassVar = {"mood": "FP32"}

    def __init__(self, model_dir, config):
        self.tokenizer = load_tokenizer(model_dir, config)
        self.pad_token_id = self.tokenizer.pad_token_id

    def parse(self, payload, params):
        return each(payload, lone_text)

    def size(self, item):
        return len(item)

    def encode(self, items, params):
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        return Batch(dict(self.tokenizer(list(items), **options)), range(len(items)), list(items))

    def texts(self, item):
        return {"text": item}

    def targets(self, model, batch, params, asked):
        moods = self.decode(self.forward(model, batch, params), batch, params)
        rows = [self.tokenizer(text).encodings[0] for text in batch.notes]
        return [
            [
                Target(
                    "mood", mood, encoded_row(self.tokenizer, row), pieces(row, self.texts(text)), self.left(row), None
                )
            ]
            for mood, row, text in zip(moods, rows, batch.notes, strict=True)
        ]

    def scores(self, outputs, targets):
        return outputs["last_hidden_state"][:, 0].mean(dim=-1)

    def decode(self, outputs, batch, params):
        means = outputs["last_hidden_state"][:, 0].mean(dim=-1)
        return [{"mood": value * (10 if params.loud else 1)} for value in means.tolist()]

    def brief(self, result):
        return f"{result['mood']:.3f}"

    def samples(self):
        return ["a", "a " * 80]

    def describe(self):
        return {}


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "mood", Mood)  # and this is the line
    models.build("bert").bert.save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    config = parse_config({"handler": {"mode": "mood", "engine": "eager"}})
    return Pipeline.load(tmp_path, config, torch.device("cpu"))


def test_it_answers_in_every_form_beside_bad_rows(pipeline):
    calls = [Call("tea", "body"), Call(5, "body"), Call(["tea", "bad"], "inputs"), Call("tea", "body", {"loud": True})]
    lone, bad, several, loud = pipeline.answer(calls)
    assert not isinstance(bad, Answer)
    assert several.results[0]["mood"] == pytest.approx(lone.results[0]["mood"], abs=1e-6)
    assert loud.results[0]["mood"] == pytest.approx(10 * lone.results[0]["mood"], abs=1e-5)
    told = write(Call(["tea", "bad"], form="v2"), several, pipeline.task, "m")
    assert told["outputs"] == [
        {"name": "mood", "shape": [2], "datatype": "FP32", "data": [record["mood"] for record in several.results]}
    ]


def test_it_is_explained_like_any_other(pipeline):
    lone, bad, several = pipeline.explain([Call("tea", "body"), Call(5, "body"), Call(["tea", "the room"], "inputs")])
    assert not isinstance(bad, Answer)
    for answer, text in ((lone.results[0], "tea"), (several.results[1], "the room")):
        (record,) = answer.records
        assert [word["text"] for word in record["words"]] == text.split()
        shares = sum(token["score"] for token in record["tokens"]) * record["norm"]
        assert shares == pytest.approx(record["input_score"] - record["baseline_score"], abs=1e-4)


def test_a_task_without_scores_explains_nothing(pipeline, monkeypatch):
    monkeypatch.setattr(Mood, "targets", Task.targets)
    (answer,) = pipeline.explain([Call("tea", "body")])
    assert int(answer.status) == 422


def test_it_proves_itself(pipeline):
    goldens, numbers = make_goldens(pipeline.task, Paced(pipeline.engine, 32))
    assert len(goldens) == 10
    assert len(numbers) > 1000


def test_other_engines_serve_it(pipeline, tmp_path):
    config = parse_config({"handler": {"mode": "mood", "engine": "torchscript"}})
    traced = Pipeline.load(tmp_path, config, torch.device("cpu"))
    texts = ["tea", "the tea was good", "never " * 30]
    wanted = pipeline.answer([Call(texts)])[0].results
    for found, record in zip(traced.answer([Call(texts)])[0].results, wanted, strict=True):
        assert found["mood"] == pytest.approx(record["mood"], abs=1e-5)
