"""One law for every task, every engine and every architecture."""

import json

import pytest
import torch
from hfserve.config import parse_config
from hfserve.forms import Answer, Call
from hfserve.pipeline import Pipeline
from hfserve.tasks import TASKS

from tests import models, reference
from tests.texts import random_texts

ENGINES = {
    "eager": {"enable": False},
    "compiled": {"enable": True},
}
TOLERANCE = 1e-4  # of a probability, fp32


def load(folder, engine, **handler):
    section = {"mode": "sequence_classification", **handler}
    config = parse_config({"handler": section, "pt2": {"compile": ENGINES[engine]}})
    pipeline = Pipeline.load(folder, config, torch.device("cpu"))
    assert pipeline.engine.name == engine
    return pipeline


# Every architecture runs eagerly; compiling takes half a minute each, so one of each kind: framed by [CLS] and bare.
COMBINATIONS = [("eager", name) for name in models.ARCHITECTURES] + [("compiled", "bert"), ("compiled", "gpt2")]


@pytest.fixture(scope="module", params=COMBINATIONS, ids="-".join)
def combination(request, tmp_path_factory):
    engine, architecture = request.param
    folder = models.save(tmp_path_factory.mktemp(architecture), architecture)
    return load(folder, engine), folder


@pytest.fixture
def pipeline(combination):
    return combination[0]


@pytest.fixture
def folder(combination):
    return combination[1]


def answers(pipeline, texts, **parameters):
    """One call a text, in one batch."""
    return pipeline.answer([Call(text, "body", {"top_k": None, **parameters}) for text in texts])


def as_scores(answer):
    assert isinstance(answer, Answer), answer
    (records,) = answer.results
    return {record["label"]: record["score"] for record in records}


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for label, score in wanted.items():
        assert found[label] == pytest.approx(score, abs=TOLERANCE)


def test_every_task_is_under_this_law():
    assert set(TASKS) == {"sequence_classification"}, "add the new task to these tests"


def test_equals_the_plain_model_in_batches_of_any_mix(pipeline, folder):
    texts = random_texts(48)
    for found, wanted in zip(answers(pipeline, texts), reference.scores(folder, texts), strict=True):
        close(as_scores(found), wanted)


def test_a_batch_answers_as_its_items_do_alone(pipeline):
    texts = random_texts(24, seed=1)
    for text, together in zip(texts, answers(pipeline, texts), strict=True):
        (alone,) = answers(pipeline, [text])
        close(as_scores(together), as_scores(alone))


def test_one_result_per_item_in_order(pipeline):
    texts = random_texts(40, seed=2)  # more than one forward pass holds
    (answer,) = pipeline.answer([Call(texts, "inputs")])
    singles = answers(pipeline, texts, top_k=1)
    assert [result[0]["label"] for result in answer.results] == [single.results[0][0]["label"] for single in singles]


def test_a_bad_row_changes_no_good_row(pipeline):
    texts = random_texts(8, seed=3)
    good = [Call(text, "body", {"top_k": None}) for text in texts]
    bad = [Call(5, "body"), Call("x", "body", {"top_k": 0}), Call("a " * 500, "body", {"truncation": "error"})]
    mixed = pipeline.answer([good[0], bad[0], *good[1:5], bad[1], bad[2], *good[5:]])
    assert [i for i, answer in enumerate(mixed) if not isinstance(answer, Answer)] == [1, 6, 7]
    assert [answer for answer in mixed if isinstance(answer, Answer)] == pipeline.answer(good)


def test_what_is_cut_is_told(pipeline):
    short, long = answers(pipeline, ["tea", "a " * 500])
    assert not short.truncated
    assert long.truncated[0].used == models.MAX_TOKENS
    assert long.truncated[0].tokens >= 500


def test_results_are_strict_json(pipeline):
    for answer in answers(pipeline, random_texts(4)):
        json.dumps(answer.results, allow_nan=False)


def test_pairs_equal_the_plain_model_and_mix_with_texts(pipeline, folder):
    pair = {"text": "the tea", "text_pair": "was good"}
    text, mixed = pipeline.answer([Call("the tea", "", {"top_k": None}), Call(pair, "", {"top_k": None})])
    close(as_scores(text), reference.scores(folder, ["the tea"])[0])
    close(as_scores(mixed), reference.pair_scores(folder, pair["text"], pair["text_pair"]))


def test_nothing_is_compiled_after_loading(pipeline):
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for count in (1, 2, 3, 7, 16, 32):
        answers(pipeline, random_texts(count, seed=count))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ENGINES)
def test_equals_the_plain_model_on_a_gpu(model_dir, engine):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    config = parse_config({"handler": {"mode": "sequence_classification"}, "pt2": {"compile": ENGINES[engine]}})
    pipeline = Pipeline.load(model_dir, config, torch.device("cuda:0"))
    texts = random_texts(16)
    for found, wanted in zip(answers(pipeline, texts), reference.scores(model_dir, texts), strict=True):
        close(as_scores(found), wanted)
