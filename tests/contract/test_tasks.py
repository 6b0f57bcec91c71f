"""One law for every task, every engine and every architecture."""

import json
from pathlib import Path

import pytest
import torch
from hfserve import engines
from hfserve.config import parse_config
from hfserve.engines import ENGINES
from hfserve.errors import ConfigError
from hfserve.forms import Answer, Call
from hfserve.pipeline import Pipeline
from hfserve.tasks import TASKS

from tests import models
from tests.contract.cases import CASES

CPU = torch.device("cpu")
GPU = torch.device("cuda:0")
NAMES = ("eager", "compiled", "torchscript", "aotinductor")  # neuron needs machines of its own: tests/unit


def load(folder: Path, mode: str, engine: str, device: torch.device = CPU, **handler) -> Pipeline:
    section = {"mode": mode, "engine": engine, **handler}
    config = parse_config({"handler": section, "pt2": {"compile": {"enable": engine == "compiled"}}})
    task = TASKS[mode](folder, config.handler)
    engines.build(folder, task, config, folder, device)
    return Pipeline.load(folder, config, device)


# Every architecture runs eagerly; the others take half a minute a model to compile, so the first of each task.
COMBINATIONS = [(mode, "eager", name) for mode, case in CASES.items() for name in case.architectures] + [
    (mode, engine, case.architectures[0]) for mode, case in CASES.items() for engine in case.engines
]


@pytest.fixture(scope="module", params=COMBINATIONS, ids="-".join)
def combination(request, tmp_path_factory):
    mode, engine, architecture = request.param
    folder = models.save(tmp_path_factory.mktemp("model"), architecture, head=mode)
    return mode, load(folder, mode, engine), folder


@pytest.fixture
def case(combination):
    return CASES[combination[0]]


@pytest.fixture
def pipeline(combination):
    return combination[1]


@pytest.fixture
def folder(combination):
    return combination[2]


def answers(pipeline, items, parameters):
    """One call an item, in one batch; the result of each."""
    found = pipeline.answer([Call(item, "body", parameters) for item in items])
    for answer in found:
        assert isinstance(answer, Answer), answer
        assert answer.lone
    return [answer.results[0] for answer in found]


def test_every_task_and_engine_is_under_this_law():
    assert set(TASKS) == set(CASES), "give the new task a line in cases.py"
    assert set(ENGINES) == {*NAMES, "neuron", "neuronx"}, "name the new engine in cases.py and here"


def test_equals_the_plain_model_in_batches_of_any_mix(pipeline, folder, case):
    items = case.items(100 if pipeline.engine.name == "eager" else 30, 0)
    for found, wanted in zip(answers(pipeline, items, case.parameters), case.wanted(folder, items), strict=True):
        case.agree(found, wanted, 1e-4)


def test_a_batch_answers_as_its_items_do_alone(pipeline, case):
    items = case.items(16, 1)
    together = answers(pipeline, items, case.parameters)
    for item, found in zip(items, together, strict=True):
        (alone,) = answers(pipeline, [item], case.parameters)
        assert json.loads(json.dumps(found)) == approximately(alone)


def approximately(value):
    if isinstance(value, dict):
        return {key: approximately(one) for key, one in value.items()}
    if isinstance(value, list):
        return [approximately(one) for one in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def test_one_result_per_item_in_order(pipeline, case):
    items = case.items(40, 2)  # more than one forward pass holds
    (answer,) = pipeline.answer([Call(items, "inputs", case.parameters)])
    assert not answer.lone
    assert answer.results == approximately(answers(pipeline, items, case.parameters))


def test_a_bad_row_changes_no_good_row(pipeline, case):
    good = [Call(item, "body", case.parameters) for item in case.items(8, 3)]
    bad = [Call(payload, "body", parameters) for payload, parameters in case.bad]
    mixed = pipeline.answer([good[0], bad[0], *good[1:5], bad[1], bad[2], *good[5:], bad[3]])
    assert [i for i, answer in enumerate(mixed) if not isinstance(answer, Answer)] == [1, 6, 7, 11]
    for answer in mixed:
        if not isinstance(answer, Answer):
            assert answer.status in (400, 422), answer.message
            assert answer.field
    assert [answer for answer in mixed if isinstance(answer, Answer)] == pipeline.answer(good)


def test_results_are_strict_json(pipeline, case):
    json.dumps(answers(pipeline, case.items(4, 4), case.parameters), allow_nan=False)


def test_nothing_is_compiled_after_loading(pipeline, case):
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for count in (1, 2, 3, 7, 16, 32):
        answers(pipeline, case.items(count, count), case.parameters)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


def test_an_error_names_the_input_among_several(pipeline, case):
    items = case.items(3, 5)
    (error,) = pipeline.answer([Call([items[0], 5, items[2]], "inputs", case.parameters)])
    assert error.field.startswith("inputs[1]")


REFUSED = [(mode, engine) for mode, case in CASES.items() for engine in {*NAMES} - {"eager", *case.engines}]


@pytest.mark.parametrize(("mode", "engine"), REFUSED)
def test_a_pair_that_cannot_work_is_refused_with_the_reason(mode, engine, tmp_path):
    folder = models.save(tmp_path, head=mode)
    config = parse_config({"handler": {"mode": mode, "engine": engine}})
    with pytest.raises(ConfigError, match=f"Engine {engine} does not generate, and handler.mode {mode} needs that"):
        Pipeline.load(folder, config, CPU)


PRECISIONS = {"bf16": 3e-2, "fp16": 1e-2}


@pytest.mark.parametrize("mode", CASES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_lower_precisions_stay_near_the_plain_model(mode, precision, tmp_path):
    near(mode, "eager", precision, CPU, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize(("mode", "engine"), [(m, e) for m, case in CASES.items() for e in ("eager", *case.engines)])
@pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
def test_the_law_holds_on_a_gpu(mode, engine, precision, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    near(mode, engine, precision, GPU, tmp_path)


def near(mode, engine, precision, device, folder):
    """The numbers behind the answers to the golden inputs; labels and tokens flip where two are all but equal."""
    from hfserve.engines.eager import Eager
    from hfserve.pace import Paced
    from hfserve.proof import make_goldens, replay

    models.save(folder, head=mode)
    wanted = parse_config({"handler": {"mode": mode}})
    task = TASKS[mode](folder, wanted.handler)
    goldens, numbers = make_goldens(task, Paced(Eager.load(folder, task, wanted, CPU), 32))
    pipeline = load(folder, mode, engine, device, precision=precision)
    (folder / "goldens.safetensors").write_bytes(numbers)
    assert pipeline.describe()["precision"] == precision
    allowed = PRECISIONS.get(precision, 1e-3)
    found = replay(folder, {"goldens": goldens}, pipeline.task, Paced(pipeline.engine, 32), allowed, "here")
    assert found <= allowed
    assert precision == "fp32" or found > 0, "nothing was rounded: is it fp32 after all?"
    items = CASES[mode].items(8, 6)
    assert len(answers(pipeline, items, CASES[mode].parameters)) == len(items)
