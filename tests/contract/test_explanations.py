"""One law for the explanations of every task, every architecture and every engine."""

import json
import random
from itertools import product

import pytest
import torch
from hfserve.config import parse_config
from hfserve.forms import Answer, Call
from hfserve.pipeline import Pipeline

from tests import attributions, decided, models
from tests.contract.cases import CASES
from tests.contract.test_tasks import GPU, load

TEXT = "the tea was not good, never a bad room"
QUESTION = "was it good?"
START, END = TEXT.index("good"), TEXT.index("good") + len("good")
OTHERS = {"token_classification": ("gpt2",), "sequence_classification": ("llama",)}

# of each mode: a payload with what is asked of it, and what plain Captum says of that, in the order of the answers
ASKED = {
    "sequence_classification": {"text": TEXT, "text_pair": "the room", "target": 1},
    "token_classification": {"text": TEXT, "target": {"start": START, "end": END, "label": "PER"}},
    "question_answering": {"question": QUESTION, "context": TEXT, "target": {"start": START, "end": END}},
    "text_generation": {"text": TEXT, "target": "tea room"},
}


def plain(folder, mode, **how):
    tokens = attributions.loaded(folder, mode)[1](TEXT, add_special_tokens=False).encodings[0].offsets
    inside = [i for i, (start, end) in enumerate(tokens) if start < END and end > START and start < end]
    if mode == "sequence_classification":
        return [attributions.classification(folder, TEXT, 1, pair="the room", **how)]
    if mode == "token_classification":
        return [attributions.entity(folder, TEXT, "PER", inside, **how)]
    if mode == "question_answering":
        ends = (("start", inside[0]), ("end", inside[-1]))
        return [attributions.answer(folder, QUESTION, TEXT, side, token, **how) for side, token in ends]
    new = attributions.loaded(folder, mode)[1]("tea room", add_special_tokens=False)["input_ids"]
    return [attributions.generated(folder, TEXT, new, place, **how) for place in range(len(new))]


def records(pipeline, *calls, **parameters):
    """The explanations of each call."""
    answers = pipeline.explain([Call(call, "", parameters) for call in calls])
    for answer in answers:
        assert isinstance(answer, Answer), answer.message
    found = [answer.results[0].records for answer in answers]
    return found[0] if len(calls) == 1 else found


def shares(record):
    return torch.tensor([token["score"] for token in record["tokens"]], dtype=torch.float64) * record["norm"]


def rank_correlation(one, other):
    """Spearman's."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


COMBINATIONS = [
    (mode, architecture)
    for mode, case in CASES.items()
    for architecture in (*case.architectures, *OTHERS.get(mode, ()))
]


@pytest.fixture(scope="module", params=dict.fromkeys(COMBINATIONS), ids="-".join)
def combination(request, tmp_path_factory):
    mode, architecture = request.param
    folder = models.save(tmp_path_factory.mktemp("model"), architecture, head=mode)
    return mode, load(folder, mode, "eager"), folder


def test_equals_plain_captum(combination):
    """Its layer integrated gradients with 500 steps, one row at a time."""
    mode, pipeline, folder = combination
    found, wanted = records(pipeline, ASKED[mode]), plain(folder, mode)
    assert len(found) == len(wanted)
    for record, reference in zip(found, wanted, strict=True):
        assert record["input_score"] == pytest.approx(reference.score, abs=1e-3)
        assert record["baseline_score"] == pytest.approx(reference.baseline, abs=1e-3)
        own = shares(record)
        theirs = reference.attributions[[part is not None for part in reference.part]]
        assert rank_correlation(own, theirs) > 0.95
    for record, reference in zip(records(pipeline, ASKED[mode], n_steps=500), wanted, strict=True):
        theirs = reference.attributions[[part is not None for part in reference.part]]
        assert (shares(record) - theirs).abs().sum() < 1e-3 * theirs.abs().sum()


def test_shares_add_up_within_the_delta_that_is_told(combination):
    mode, pipeline, _ = combination
    for record in records(pipeline, ASKED[mode]):
        total, size = float(shares(record).sum()), float(shares(record).abs().sum())
        moved = record["input_score"] - record["baseline_score"]
        assert total - moved == pytest.approx(record["convergence_delta"], abs=1e-4 * max(1, size))
        assert record["converged"] is (abs(record["convergence_delta"]) <= 0.02 * size)
        assert record["converged"], record["n_steps"]
        assert sum(token["score"] ** 2 for token in record["tokens"]) == pytest.approx(1)


def test_places_are_exact_and_words_are_whole(combination):
    mode, pipeline, _ = combination
    texts = {"text": TEXT, "text_pair": "the room", "question": QUESTION, "context": TEXT}
    for record in records(pipeline, ASKED[mode]):
        for part in (*record["tokens"], *record["words"]):
            assert texts[part.get("field", "text")][part["start"] : part["end"]] == part["text"]
            assert not part["text"][:1].isspace()
        words = [word["text"] for word in record["words"] if word.get("field") not in ("question", "text_pair")]
        assert words == ["the", "tea", "was", "not", "good", ",", "never", "a", "bad", "room"]
        for word in record["words"]:
            parts = [token["score"] for token in record["tokens"] if token.get("field") == word.get("field")
                     and word["start"] <= token["start"] and token["end"] <= word["end"]]  # fmt: skip
            assert word["score"] == pytest.approx(sum(parts), abs=1e-6)


def test_a_batch_explains_as_its_items_do_alone(combination):
    """In passes that rows of other lengths share, padded."""
    mode, pipeline, _ = combination
    rng = random.Random(0)
    calls = [CASES[mode].items(1, seed)[0] for seed in range(5)]
    calls = [call if len(str(call)) < 200 else ASKED[mode] for call in calls] + [ASKED[mode]]
    rng.shuffle(calls)
    parameters = {"n_steps": 4} | ({"max_new_tokens": 2, "do_sample": False} if mode == "text_generation" else {})
    for call, together in zip(calls, records(pipeline, *calls, **parameters), strict=True):
        alone = records(pipeline, call, **parameters)
        assert [record["target"] for record in together] == [record["target"] for record in alone]
        for one, other in zip(together, alone, strict=True):
            assert torch.allclose(shares(one), shares(other), atol=1e-3 * max(1.0, one["norm"]))


def test_other_methods_explain_too(combination):
    mode, pipeline, _ = combination
    exact = records(pipeline, ASKED[mode])
    for method in ("occlusion", "input_x_gradient"):
        for record, other in zip(records(pipeline, ASKED[mode], method=method), exact, strict=True):
            assert record["method"] == method
            assert record["n_steps"] is record["converged"] is None
            assert len(record["tokens"]) == len(other["tokens"])
            assert record["input_score"] == pytest.approx(other["input_score"], abs=1e-4)
            assert record["norm"] > 0


def test_occlusion_is_what_the_score_loses(combination):
    """Each token replaced by the baseline's in the embeddings, one at a time, by hand."""
    mode, pipeline, _ = combination
    if mode == "text_generation" or pipeline.explainer is None:
        pytest.skip("asked of the other modes")
    (target, *_) = pipeline._in_passes(
        pipeline.reader.read_why(0, Call(ASKED[mode], "", {})).rows,
        lambda rows: pipeline._targets(rows, pipeline.task.Params(), float("inf")),
        float("inf"),
    )[0].value
    rows = pipeline.explainer.model.rows([target], float("inf"))
    record = records(pipeline, ASKED[mode], method="occlusion")[0]
    for piece, token in zip(target.pieces, record["tokens"], strict=True):
        without = rows.inputs.clone()
        without[0, piece.column] = rows.baselines[0, piece.column]
        with torch.no_grad():
            lost = rows.input_scores[0] - float(rows.scores(without, rows.every))
        assert token["score"] * record["norm"] == pytest.approx(lost, abs=1e-3)


def test_bad_rows_cost_only_themselves(combination):
    mode, pipeline, _ = combination
    good = Call(ASKED[mode], "inputs")
    bad = [
        Call(ASKED[mode] | {"target": {"start": 5, "end": 5}}, "inputs"),
        Call(5, "inputs"),
        Call(ASKED[mode], "inputs", {"method": "guess"}),
        Call(ASKED[mode], "inputs", {"n_steps": 0}),
        Call(ASKED[mode], "inputs", {"steps": 5}),
        Call([ASKED[mode], ASKED[mode] | {"target": [9999, "x", 5]}], "inputs"),
    ]
    found = pipeline.explain([bad[0], good, *bad[1:3], good, *bad[3:]])
    alone = pipeline.explain([good])[0]
    assert [isinstance(answer, Answer) for answer in found] == [False, True, False, False, True, False, False, False]
    for answer in (found[1], found[4]):
        assert rank_correlation(shares(answer.results[0].records[0]), shares(alone.results[0].records[0])) > 0.99
    fields = [answer.field for answer in found if not isinstance(answer, Answer)]
    assert fields[0].startswith("inputs.target")
    assert fields[1:5] == ["inputs", "parameters.method", "parameters.n_steps", "parameters.steps"]
    assert fields[5].startswith("inputs[1].target")


def test_explanations_are_strict_json(combination):
    mode, pipeline, _ = combination
    (answer,) = pipeline.explain([Call([ASKED[mode]] * 2, "inputs")])
    json.dumps([result.to_json() for result in answer.results], allow_nan=False)
    assert [result.lone for result in answer.results] == [mode == "sequence_classification"] * 2


# --- one known token decides


@pytest.mark.parametrize("mode", CASES)
def test_the_token_that_decides_has_the_top_score(mode, tmp_path):
    """Models that were taught one rule; one of 40 questions is answered against it."""
    pipeline = load(decided.save_decided(tmp_path, mode), mode, "eager")
    rng = random.Random(0)
    texts = [decided.random_text(mode, rng) for _ in range(20)]
    calls = [{"question": "who?", "context": text} if mode == "question_answering" else text for text in texts]
    parameters = {"max_new_tokens": 1, "do_sample": False} if mode == "text_generation" else {}
    tops = []
    for found in records(pipeline, *calls, **parameters):
        best = max(found[0]["words"], key=lambda word: abs(word["score"])) if found else {"text": "nothing found"}
        tops.append(best["text"])
    assert tops.count(decided.DECIDES[mode]) >= 19, tops


# --- beside every engine

ENGINES = [(mode, engine) for mode, case in CASES.items() for engine in case.engines]


@pytest.mark.parametrize(("mode", "engine"), ENGINES)
def test_an_eager_twin_explains_beside_every_engine(mode, engine, tmp_path):
    """With the same weights in memory, made when it is first asked for; and predictions compile nothing anew."""
    folder = models.save(tmp_path, head=mode)
    pipeline = load(folder, mode, engine)
    assert pipeline.explainer is None
    items = CASES[mode].items(3, 0)
    before = pipeline.answer([Call(items)])
    (record, *_) = records(pipeline, ASKED[mode])
    assert shares(record).abs().sum() > 0
    wanted = plain(folder, mode)[0]
    assert rank_correlation(shares(record), wanted.attributions[[part is not None for part in wanted.part]]) > 0.95
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert pipeline.answer([Call(items)]) == before
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    ours = {parameter.data_ptr() for parameter in pipeline.engine.plain().parameters()}
    assert weights_of(pipeline.engine) & ours, "the twin has weights of its own"


def weights_of(engine):
    """Where the weights lie that the engine itself multiplies with."""
    if hasattr(engine, "constants"):
        return {tensor.data_ptr() for tensor in engine.constants.values()}
    traced = getattr(engine, "traced", None) or engine.model
    return {parameter.data_ptr() for parameter in traced.parameters()}


@pytest.mark.gpu
@pytest.mark.parametrize(("mode", "precision"), list(product(CASES, ("fp32", "bf16"))))
def test_explanations_on_a_gpu(mode, precision, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    folder = models.save(tmp_path, head=mode)
    config = parse_config({"handler": {"mode": mode, "engine": "eager", "precision": precision}})
    found = records(Pipeline.load(folder, config, GPU), ASKED[mode])
    for record, wanted in zip(found, plain(folder, mode), strict=True):
        theirs = wanted.attributions[[part is not None for part in wanted.part]]
        assert rank_correlation(shares(record), theirs) > (0.95 if precision == "fp32" else 0.8)
