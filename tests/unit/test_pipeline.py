import json
import logging
import threading
import time

import pytest
import torch
import torch._inductor.config
from hfserve.config import parse_config
from hfserve.engines import ENGINES
from hfserve.engines.eager import Eager
from hfserve.errors import ConfigError, InternalError, OutOfMemory, TooLarge, TooSlow
from hfserve.forms import Answer, Call
from hfserve.pipeline import Pipeline

from tests import models, reference
from tests.texts import random_texts

CPU = torch.device("cpu")


def load(folder, compile_enable=False, timeout=60, **handler):
    section = {"mode": "sequence_classification", **handler}
    options = {"compile": {"enable": compile_enable}}
    return Pipeline.load(folder, parse_config({"handler": section, "pt2": options, "responseTimeout": timeout}), CPU)


@pytest.fixture(scope="module")
def pipeline(model_dir):
    return load(model_dir)


class Watched:
    """The eager engine, with its passes counted and, on demand, made to fail: what a GPU's memory would do."""

    name = "watched"
    device = CPU

    def __init__(self, engine, fail=lambda tensors: None):
        self.engine = engine
        self.fail = fail
        self.shapes = []

    def run(self, tensors):
        self.shapes.append(tuple(tensors["input_ids"].shape))
        self.fail(tensors)
        return self.engine.run(tensors)


def watched(pipeline, fail=lambda tensors: None):
    return Pipeline(pipeline.task, Watched(pipeline.engine, fail), pipeline.config)


def calls(texts, **parameters):
    return [Call(text, "body", parameters) for text in texts]


def statuses(answers):
    return [200 if isinstance(answer, Answer) else int(answer.status) for answer in answers]


def test_five_kinds_of_bad_row_cost_only_themselves(pipeline):
    good = calls(random_texts(27))
    bad = [
        Call(5, "inputs"),
        Call("x", "body", {"topk": 2}),
        Call("x", "body", {"top_k": "two"}),
        Call(["fine", ""], "inputs"),
        Call("a " * 200, "body", {"truncation": "error"}),
    ]
    mixed = list(good)
    for place, call in zip((0, 7, 13, 20, 31), bad, strict=True):
        mixed.insert(place, call)
    answers = pipeline.answer(mixed)
    errors = [answer for answer in answers if not isinstance(answer, Answer)]
    assert [error.field for error in errors] == ["inputs", "parameters.topk", "parameters.top_k", "inputs[1]", "body"]
    assert [int(error.status) for error in errors] == [400, 400, 400, 400, 422]
    fine = [answer for answer in answers if isinstance(answer, Answer)]
    assert fine == pipeline.answer(good)  # to the last bit: the good rows' passes are the same
    for call, answer in zip(good, fine, strict=True):
        (alone,) = pipeline.answer([call])
        assert answer.results[0][0]["label"] == alone.results[0][0]["label"]
        assert answer.results[0][0]["score"] == pytest.approx(alone.results[0][0]["score"], abs=1e-6)


def test_padding_goes_to_the_longest_row_of_a_pass_only(pipeline):
    counted = watched(pipeline)
    counted.answer(calls(["tea", "the tea was good", "not bad"]))
    assert counted.engine.shapes == [(3, 6)]  # four words and [CLS], [SEP]; not the model's 64


def test_like_lengths_share_passes(pipeline):
    short, long = ["tea"] * 32, ["the tea was good " * 10] * 32
    mixed = [text for pair in zip(short, long, strict=True) for text in pair]
    counted = watched(pipeline)
    counted.answer(calls(mixed))
    assert counted.engine.shapes == [(32, 3), (32, 42)]


def test_calls_with_other_parameters_do_not_share_a_pass(pipeline):
    counted = watched(pipeline)
    counted.answer([*calls(["tea", "room"], top_k=1), *calls(["bad"], top_k=2)])
    assert sorted(counted.engine.shapes) == [(1, 3), (2, 3)]


def out_of_memory_above(limit):
    def fail(tensors):
        if tensors["input_ids"].numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    return fail


def test_a_row_that_runs_out_of_memory_is_found_by_halving(pipeline):
    texts = ["tea"] * 15
    mixed = [*texts[:6], "a " * 60, *texts[6:]]
    answers = watched(pipeline, out_of_memory_above(60)).answer(calls(mixed))
    assert statuses(answers) == [200] * 6 + [507] + [200] * 9
    assert answers[6].field == "body"
    (answer,) = watched(pipeline, out_of_memory_above(60)).answer([Call(["tea", "a " * 60], "inputs")])
    assert (int(answer.status), answer.field) == (507, "inputs[1]")
    assert isinstance(answers[6], OutOfMemory)


def test_a_batch_that_is_too_large_as_a_whole_is_answered_in_parts(pipeline):
    counted = watched(pipeline, out_of_memory_above(30))
    answers = counted.answer(calls(["tea"] * 32))
    assert statuses(answers) == [200] * 32
    assert counted.engine.shapes[0] == (32, 3)


def test_running_out_of_real_memory(model_dir):
    """The CPU allocator's own failure, by asking for more than any address space has."""
    pipeline = load(model_dir)

    def fail(tensors):
        if tensors["input_ids"].shape[1] > 40:
            torch.empty(1 << 60, dtype=torch.uint8)

    answers = watched(pipeline, fail).answer(calls(["tea", "a " * 60, "room"]))
    assert statuses(answers) == [200, 507, 200]


def test_a_lost_accelerator_ends_the_worker(pipeline):
    """Not an Exception: TorchServe's worker would catch one and go on with a device that cannot work any more."""

    def fail(tensors):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered", 710)

    with pytest.raises(SystemExit, match="accelerator failed"):
        watched(pipeline, fail).answer(calls(["tea", "room"]))


def test_a_row_that_breaks_the_model_is_found_by_halving(pipeline, caplog):
    text = "".join(["se", "cret"])  # not spelt in the source, which a stack quotes

    def fail(tensors):
        if (tensors["input_ids"] == models.VOCABULARY["room"]).any():
            raise ValueError(f"the {text} room")

    with caplog.at_level(logging.ERROR):
        answers = watched(pipeline, fail).answer(calls(["tea", "room", "bad", "good", "never"]))
    assert statuses(answers) == [200, 500, 200, 200, 200]
    assert isinstance(answers[1], InternalError)
    assert "secret" not in caplog.text


def test_what_has_no_time_left_is_told_so(model_dir):
    pipeline = load(model_dir, timeout=1, max_rows=1)
    wait = threading.Event()
    slow = watched(pipeline, lambda tensors: wait.wait(0.3))
    answers = slow.answer(calls(["tea"] * 8))
    done = statuses(answers)
    assert done[0] == 200
    assert done[-1] == 504
    assert done == sorted(done)  # those whose turn came have their answers
    assert isinstance(answers[-1], TooSlow)


def test_a_pass_too_long_for_the_time_left_is_split(model_dir):
    """Else one slow pass, begun just before the deadline, would outlast `responseTimeout`."""
    pipeline = load(model_dir, timeout=1)
    wait = threading.Event()
    slow = watched(pipeline, lambda tensors: wait.wait(0.1 * len(tensors["input_ids"])))
    slow.pace = 0.1 / len("tea")
    start = time.monotonic()
    done = statuses(slow.answer(calls(["tea"] * 32)))
    assert time.monotonic() - start < 1
    assert done[0] == 200
    assert done[-1] == 504


def test_a_short_text_before_does_not_split_the_passes_after_it(pipeline):
    """What a character costs is taken from the longest row, not from a text whose time is all overhead."""
    wait = threading.Event()
    slow = watched(pipeline, lambda tensors: wait.wait(0.5))  # a second for each two characters, if it were asked
    slow.answer(calls(["a"]))
    slow.answer(calls(["the tea was good " * 5] * 32))
    assert slow.engine.shapes[1:] == [(32, 22)]


def test_a_long_list_is_refused_before_it_is_read(model_dir):
    start = time.monotonic()
    (answer,) = load(model_dir).answer([Call([0] * 3_000_000, "inputs")])  # not even texts
    assert int(answer.status) == 413
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("text", ["\u200b", "\u00ad", "\0", "\ufffd"])
def test_a_text_without_tokens_is_refused_alone_and_beside_others(tmp_path, text):
    pipeline = load(models.save(tmp_path, "gpt2"))
    assert statuses(pipeline.answer(calls([text]))) == [400]
    assert statuses(pipeline.answer(calls(["tea", text, "room"]))) == [200, 400, 200]


def test_a_padding_token_of_the_tokenizer_alone_changes_no_answer(tmp_path):
    folder = models.save(tmp_path, "gpt2")
    padding = models.tokenizer(framed=False)
    padding.pad_token = "[PAD]"  # and config.json has none
    padding.save_pretrained(folder)
    pipeline = load(folder)
    texts = ["tea was good", "the tea was good " * 8]
    for answer, wanted in zip(pipeline.answer(calls(texts, top_k=None)), reference.scores(folder, texts), strict=True):
        assert {r["label"]: pytest.approx(r["score"], abs=1e-5) for r in answer.results[0]} == wanted


def test_the_short_form_of_a_regression_is_its_number(tmp_path):
    pipeline = load(models.save(tmp_path, num_labels=1, problem_type="regression"))
    (answer,) = pipeline.answer(calls(["tea"]))
    assert float(pipeline.task.brief(answer.results[0])) == answer.results[0][0]["score"]


def test_too_many_and_too_much_are_413(model_dir):
    pipeline = load(model_dir, max_inputs=3, max_characters=100)
    answers = pipeline.answer([Call(["tea"] * 4, "inputs"), Call("a" * 101, "body"), Call(["tea"] * 3, "inputs")])
    assert statuses(answers) == [413, 413, 200]
    assert isinstance(answers[0], TooLarge)
    assert answers[0].field == "inputs"


@pytest.mark.parametrize("value", ["\ud800", " ", "", None, 5, ["nested"], {"text": 5}, {"text": "a", "x": 1}, {}])
def test_what_is_no_text_is_refused(pipeline, value):
    (answer,) = pipeline.answer([Call(["fine", value], "inputs")])
    assert int(answer.status) == 400
    assert answer.field.startswith("inputs[1]")


def test_odd_texts_are_answered(pipeline):
    odd = ["\0", "a\u0301" * 50, "\U0001f600" * 300, "\u202eabc", "x" * 5000, "\n\t.", "\ufffd", "שלום"]
    assert statuses(pipeline.answer(calls(odd))) == [200] * len(odd)


@pytest.mark.parametrize(
    ("options", "function"),
    [
        ({"num_labels": 4, "problem_type": "multi_label_classification"}, "sigmoid"),
        ({"num_labels": 1, "problem_type": "regression"}, "none"),
        ({"num_labels": 1}, "sigmoid"),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, "softmax"),
    ],
)
def test_every_kind_of_head(tmp_path, options, function):
    folder = models.save(tmp_path, **options)
    texts = random_texts(5)
    answers = load(folder).answer(calls(texts, top_k=None))
    for answer, wanted in zip(answers, reference.scores(folder, texts, function), strict=True):
        assert {r["label"]: pytest.approx(r["score"], abs=1e-5) for r in answer.results[0]} == wanted


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_a_request_chooses_the_function(pipeline, model_dir, function):
    (answer,) = pipeline.answer(calls(["the tea"], top_k=None, function_to_apply=function))
    (wanted,) = reference.scores(model_dir, ["the tea"], function)
    assert {r["label"]: pytest.approx(r["score"], abs=1e-5) for r in answer.results[0]} == wanted


@pytest.mark.parametrize("top_k", [1, 2, 3, 50, None])
def test_top_k_gives_the_best_labels_first(pipeline, top_k):
    (answer,) = pipeline.answer(calls(["the tea"], top_k=top_k))
    scores = [record["score"] for record in answer.results[0]]
    assert len(scores) == min(top_k or 3, 3)
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 0), ("top_k", True), ("top_k", 1.5), ("function_to_apply", "SOFTMAX"), ("truncation", False), ("x", 1)],
)
def test_a_bad_parameter_is_named(pipeline, name, value):
    (answer,) = pipeline.answer(calls(["tea"], **{name: value}))
    assert int(answer.status) == 400
    assert answer.field == f"parameters.{name}"


def test_index_to_name_renames_labels(tmp_path):
    folder = models.save(tmp_path)
    (folder / "index_to_name.json").write_text('{"0": "good", "1": "bad", "2": "so so"}')
    (answer,) = load(folder).answer(calls(["tea"], top_k=None))
    assert {record["label"] for record in answer.results[0]} == {"good", "bad", "so so"}
    (folder / "index_to_name.json").write_text('{"0": "good"}')
    with pytest.raises(ConfigError, match="index_to_name.json must name each of the 3 labels"):
        load(folder)


def test_max_length_cuts_earlier_and_never_later(model_dir):
    pipeline = load(model_dir, max_length=10)
    (answer,) = pipeline.answer(calls(["tea " * 30]))
    assert (answer.truncated[0].tokens, answer.truncated[0].used) == (32, 10)
    with pytest.raises(ConfigError, match="handler.max_length is 65, but the model takes 64"):
        load(model_dir, max_length=65)
    with pytest.raises(ConfigError, match="handler.max_length is 3: give 5 or more"):
        load(model_dir, max_length=3)


def test_what_cannot_be_served_is_refused_at_load(tmp_path, model_dir):
    with pytest.raises(ConfigError, match="handler.mode 'sequence_clasification' is unknown"):
        Pipeline.load(model_dir, parse_config({"handler": {"mode": "sequence_clasification"}}), CPU)
    headless = tmp_path / "headless"
    models.build("bert").bert.save_pretrained(headless)
    models.tokenizer().save_pretrained(headless)
    with pytest.raises(ConfigError, match=r"The weights lack classifier.bias, classifier.weight"):
        load(headless)
    too_long = models.save(tmp_path / "roberta", "roberta")
    longer = models.tokenizer()
    longer.model_max_length = 10_000
    longer.save_pretrained(too_long)  # now the files allow 66 tokens, and the model's positions end at 64
    with pytest.raises(ConfigError, match="set handler.max_length lower"):
        load(too_long)
    assert load(too_long, max_length=64).task.max_tokens == 64


@pytest.fixture
def no_compiler():
    """A machine without a C++ compiler, and nothing compiled before."""
    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        yield
    torch._dynamo.reset()


def test_without_a_compiler_the_plain_model_serves_and_says_so(model_dir, no_compiler, caplog):
    with caplog.at_level(logging.WARNING):
        pipeline = load(model_dir, compile_enable=True)
    assert pipeline.engine.name == "eager"
    assert "'compiled' does not work here, 'eager' serves instead" in caplog.text
    assert statuses(pipeline.answer(calls(["tea"]))) == [200]


@pytest.mark.parametrize("options", [{"mode": "fastest"}, {"options": {"nonsense": 1}}])
def test_what_torch_compile_refuses_is_refused(model_dir, options):
    config = parse_config({"handler": {"mode": "sequence_classification"}, "pt2": {"compile": options}})
    with pytest.raises(ConfigError, match="pt2.compile has a mode or options that torch.compile refuses"):
        Pipeline.load(model_dir, config, CPU)


def test_who_asks_for_the_whole_graph_gets_no_other(model_dir, no_compiler):
    compile_ = {"compile": {"fullgraph": True}}
    config = parse_config({"handler": {"mode": "sequence_classification"}, "pt2": compile_})
    with pytest.raises(ConfigError, match="fails on its self-test"):
        Pipeline.load(model_dir, config, CPU)


def test_labels_that_do_not_start_at_zero_are_refused(tmp_path):
    folder = models.save(tmp_path)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["id2label"] = {"1": "a", "2": "b", "3": "c"}
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="id2label in config.json must name the labels 0 to 2"):
        load(folder)


def test_an_unknown_backend_is_refused(model_dir):
    config = parse_config({"handler": {"mode": "sequence_classification"}, "pt2": {"compile": {"backend": "inducto"}}})
    with pytest.raises(ConfigError, match="pt2.compile.backend 'inducto' is unknown: choose one of .*inductor"):
        Pipeline.load(model_dir, config, CPU)


def test_engines_are_named_as_they_are_found(model_dir):
    assert load(model_dir).describe()["engine"] == "eager"
    assert ENGINES["eager"] == f"{Eager.__module__}:{Eager.__qualname__}"
