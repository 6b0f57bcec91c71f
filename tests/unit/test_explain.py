"""Explanations without a server: steps, time, memory, what may be asked for, and exact places."""

import inspect
import math
import sys
import threading
import time

import psutil
import pytest
import torch
from hfserve import explain
from hfserve.config import parse_config
from hfserve.embedded import aligned
from hfserve.errors import RequestError
from hfserve.explain import Attribution, Explainer
from hfserve.forms import Answer, Call
from hfserve.pipeline import Pipeline
from hfserve.tasks import TASKS

from tests import attributions, models

TEXT = "the tea was not good, never a bad room"
CPU = torch.device("cpu")


def load(folder, mode="sequence_classification", **handler):
    config = {"handler": {"mode": mode, "engine": "eager", **handler}}
    return Pipeline.load(folder, parse_config(config), CPU)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {mode: models.save(tmp_path_factory.mktemp(mode), head=mode) for mode in TASKS}


@pytest.fixture(scope="module")
def pipelines(folders):
    return {mode: load(folder, mode) for mode, folder in folders.items()}


@pytest.fixture
def pipeline(pipelines):
    return pipelines["sequence_classification"]


def why(pipeline, payload, deadline=None, **parameters):
    """The records of one input."""
    (answer,) = pipeline.explain([Call(payload, "inputs", parameters)], deadline)
    assert isinstance(answer, Answer), answer.message
    return answer.results[0].records


def refused(pipeline, payload, **parameters):
    (answer,) = pipeline.explain([Call(payload, "inputs", parameters)])
    assert isinstance(answer, RequestError), "answered"
    return int(answer.status), answer.field


def watched(pipeline, monkeypatch, before=lambda rows: None):
    """Call `before` with the rows of each pass; return the list of them."""
    passes = []
    model = pipeline.engine.model
    plain = model.forward

    def forward(input_ids, **inputs):
        passes.append(len(input_ids))
        before(len(input_ids))
        return plain(input_ids=input_ids, **inputs)

    forward.__signature__ = inspect.signature(plain)
    monkeypatch.setattr(model, "forward", forward)
    pipeline.explainer = None
    return passes


# --- steps


@pytest.fixture
def hard(tmp_path_factory):
    """A model with a path so crooked that few steps miss its score."""
    return load(models.save(tmp_path_factory.mktemp("hard"), "deberta", spread=50.0))


def test_steps_grow_until_the_shares_add_up(hard):
    (rough,) = why(hard, TEXT, n_steps=2)
    (record,) = why(hard, TEXT, tolerance=1e-3)
    size = record["norm"] * sum(abs(token["score"]) for token in record["tokens"])
    assert record["n_steps"] > 24
    assert record["converged"] is True
    assert abs(record["convergence_delta"]) <= 1e-3 * size
    assert abs(rough["convergence_delta"]) > abs(record["convergence_delta"])
    assert (rough["n_steps"], rough["converged"]) == (2, False)


def test_steps_end_at_the_most_there_are(hard, monkeypatch):
    monkeypatch.setattr(explain, "MOST_STEPS", 50)
    (record,) = why(hard, TEXT, tolerance=1e-6)
    assert (record["n_steps"], record["converged"]) == (48, False)


def test_those_that_add_up_take_no_further_steps(hard, monkeypatch):
    passes = watched(hard, monkeypatch)
    easy, crooked = hard.explain([Call(payload, "", {"tolerance": 0.05}) for payload in ("a", TEXT)])
    steps = [answer.results[0].records[0]["n_steps"] for answer in (easy, crooked)]
    assert steps[0] != steps[1]
    # each round has twice the steps of the one before, and looks at both ends of the path
    wanted = sum(2 * most - 24 for most in steps)
    assert wanted <= sum(passes) < wanted + 40


# --- time


def test_what_is_known_is_told_when_the_time_is_up(hard, monkeypatch):
    wait = threading.Event()
    watched(hard, monkeypatch, lambda rows: wait.wait(0.02 * rows))  # all steps would take half a minute
    start = time.monotonic()
    (record,) = why(hard, TEXT, deadline=start + 3, tolerance=1e-6)
    assert time.monotonic() < start + 5
    assert record["converged"] is False
    assert 24 <= record["n_steps"] < 768


def test_what_the_time_does_not_reach_is_504_and_the_rest_is_answered(pipeline, monkeypatch):
    wait = threading.Event()
    watched(pipeline, monkeypatch, lambda rows: wait.wait(0.05 * rows))
    start = time.monotonic()
    quick, slow = Call("tea", "body", {"n_steps": 5}), Call(TEXT, "body", {"n_steps": 200})  # 10 s each
    first, *late, last = pipeline.explain([quick, slow, slow, quick], start + 3)
    assert time.monotonic() < start + 5
    assert isinstance(first, Answer)
    assert isinstance(last, Answer)
    assert [int(answer.status) for answer in late] == [504, 504]
    assert late[0].field == "body"


def test_rows_are_not_weighed_when_the_time_is_up(pipeline, monkeypatch):
    """Of rising length, so that each would be weighed."""
    wait = threading.Event()
    watched(pipeline, monkeypatch, lambda rows: wait.wait(0.05))
    start = time.monotonic()
    answers = pipeline.explain([Call("tea " * n, "body", {"n_steps": 50}) for n in range(1, 60)], start + 2)
    assert time.monotonic() < start + 5
    assert {int(answer.status) for answer in answers if not isinstance(answer, Answer)} == {504}


def test_there_is_no_time_left_at_all(pipeline):
    (answer,) = pipeline.explain([Call("tea", "body")], time.monotonic() - 1)
    assert int(answer.status) == 504


# --- memory


def test_passes_are_sized_to_the_memory_that_is_free(pipeline, monkeypatch):
    passes = watched(pipeline, monkeypatch)
    (roomy,) = why(pipeline, TEXT, math.inf, n_steps=30)
    assert max(passes) == 30
    weight = pipeline.explainer.bytes * pipeline.explainer.longest
    available = psutil.virtual_memory()._replace(available=int(4 * weight / explain.MEMORY) + 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    passes.clear()
    (tight,) = why(pipeline, TEXT, math.inf, n_steps=30)
    assert max(passes) == 4
    assert tight["norm"] == pytest.approx(roomy["norm"], rel=1e-4)


def test_bytes_are_those_that_gradients_keep(pipeline):
    """Of a longer row more, and of none less than the inputs of its two layers."""
    pipeline.explainer = None
    why(pipeline, "tea", n_steps=1)
    short = pipeline.explainer.bytes * pipeline.explainer.longest
    pipeline.explainer = None
    why(pipeline, TEXT, n_steps=1)
    assert pipeline.explainer.bytes * pipeline.explainer.longest > 2 * short > 2 * 2 * 3 * 32 * 4


def test_a_pass_without_memory_is_tried_in_halves(pipeline, monkeypatch):
    def before(rows):
        if rows > 40:
            raise torch.OutOfMemoryError("too much")

    wanted = [why(pipeline, text, n_steps=20)[0]["norm"] for text in ("tea", "the room", "never")]
    watched(pipeline, monkeypatch, before)
    found = pipeline.explain([Call(text, "", {"n_steps": 20}) for text in ("tea", "the room", "never")])
    assert [answer.results[0].records[0]["norm"] for answer in found] == pytest.approx(wanted, rel=1e-3)


def test_a_row_that_fails_alone_costs_only_itself(pipeline, monkeypatch):
    plain = pipeline.task.scores

    def scores(outputs, targets):
        if len(targets) > 1 and any(len(target.row["input_ids"]) == 3 for target in targets):
            raise ValueError("odd")
        return plain(outputs, targets)

    monkeypatch.setattr(pipeline.task, "scores", scores)
    good, odd, other = pipeline.explain([Call(text, "body") for text in (TEXT, "tea", "the room")])
    assert isinstance(good, Answer)
    assert isinstance(other, Answer)
    assert int(odd.status) == 500


# --- numbers


def test_no_share_at_all_is_no_nan(pipeline):
    """A text of padding is its own baseline."""
    (record,) = why(pipeline, "[PAD] [PAD]")
    assert [token["score"] for token in record["tokens"]] == [0.0, 0.0]
    assert record["norm"] == 0
    assert record["converged"] is True
    assert record["input_score"] == pytest.approx(record["baseline_score"], abs=1e-5)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_model_that_gives_no_number_is_refused(pipeline, monkeypatch, value):
    plain = pipeline.task.scores

    def scores(outputs, targets):
        factors = [float(value) if len(target.row["input_ids"]) == 3 else 1.0 for target in targets]
        return plain(outputs, targets) * torch.tensor(factors)

    monkeypatch.setattr(pipeline.task, "scores", scores)
    odd, good = pipeline.explain([Call("tea", "body"), Call(TEXT, "body")])
    assert (int(odd.status), odd.field) == (422, "body")
    assert isinstance(good, Answer)


def test_rounding_is_no_reason_for_more_steps(tmp_path):
    """In bf16 scores are exact to a hundredth, which no number of steps betters."""
    (record,) = why(load(models.save(tmp_path), precision="bf16"), TEXT, tolerance=1e-4)
    assert record["n_steps"] < 768
    assert record["converged"] is False


def test_delta_is_what_the_shares_miss():
    assert Attribution([1.0, -0.5], 3.0, 2.0).delta == -0.5
    assert Attribution([1.0, -0.5], 3.0, 2.5).within(0)
    assert not Attribution([1.0, -0.5], 3.0, 2.0).within(0.3)
    assert not Attribution([0.0], 3.0, 3.5).within(0.3)
    assert Attribution([0.0], 3.0, 3.0).within(0)


def test_generated_tokens_are_explained_as_captum_s_own_language_model_attribution_does(pipelines, folders):
    """It takes one prompt and one token at a time, which is why it does not serve here."""
    mode = "text_generation"
    new = attributions.loaded(folders[mode], mode)[1]("tea room", add_special_tokens=False)["input_ids"]
    wanted = attributions.generated_by_captum(folders[mode], TEXT, new, steps=50)
    for record, theirs in zip(why(pipelines[mode], TEXT, target="tea room", n_steps=50), wanted, strict=True):
        found = torch.tensor([token["score"] * record["norm"] for token in record["tokens"]], dtype=torch.float64)
        assert torch.allclose(found, theirs, atol=1e-4)


def test_input_x_gradient_is_captum_s(pipeline, folders):
    from captum.attr import LayerGradientXActivation

    model, tokenizer = attributions.loaded(folders["sequence_classification"], "sequence_classification")
    row = tokenizer(TEXT, return_tensors="pt")

    def score(ids):
        return attributions.log_odds(model(input_ids=ids, attention_mask=row["attention_mask"]).logits, [1])

    wanted = LayerGradientXActivation(score, model.get_input_embeddings()).attribute(row["input_ids"])
    (record,) = why(pipeline, TEXT, target=1, method="input_x_gradient")
    found = [token["score"] * record["norm"] for token in record["tokens"]]
    assert found == pytest.approx(wanted[0].sum(dim=-1)[1:-1].tolist(), abs=1e-4)


# --- what may be asked for


def test_a_label_by_name_or_index(pipeline):
    for asked in ("LABEL_2", 2, "2"):
        assert why(pipeline, TEXT, target=asked)[0]["prediction"]["label"] == "LABEL_2"
    assert why(pipeline, {"text": TEXT, "target": 0}, target=2)[0]["target"] == "LABEL_0"
    for bad, status in ((3, 422), (-1, 422), ("LABEL_3", 422), ("9" * 5000, 422), (True, 400), (1.0, 400), ([0], 400)):
        assert refused(pipeline, TEXT, target=bad) == (status, "parameters.target")
        assert refused(pipeline, [TEXT, {"text": TEXT, "target": bad}]) == (status, "inputs[1].target")
    (twice,) = pipeline.explain([Call(TEXT, "inputs", {"target": 1}, target=0)])
    assert (int(twice.status), twice.field) == (400, "target")
    (beside,) = pipeline.explain([Call(TEXT, "inputs", target=2)])
    assert beside.results[0].records[0]["target"] == "LABEL_2"


@pytest.mark.parametrize(("problem", "labels"), [("multi_label_classification", 3), ("regression", 1)])
def test_labels_that_stand_alone_are_explained_by_their_logit(problem, labels, tmp_path):
    alone = load(models.save(tmp_path, num_labels=labels, problem_type=problem))
    (record,) = why(alone, TEXT, target=labels - 1)
    (answer,) = alone.answer([Call(TEXT, "", {"function_to_apply": "none", "top_k": None})])
    logits = {r["label"]: r["score"] for r in answer.results[0]}
    assert record["input_score"] == pytest.approx(logits[record["target"]], abs=1e-4)


def test_entities_by_label_stretch_and_token(pipelines):
    task = pipelines["token_classification"]
    (answer,) = task.answer([Call(TEXT)])
    found = why(task, TEXT, n_steps=2)
    assert [record["prediction"] for record in found] == answer.results[0]
    kinds = {record["target"] for record in found}
    for kind in kinds:
        chosen = [record["prediction"] for record in found if record["target"] == kind]
        assert [record["prediction"] for record in why(task, TEXT, n_steps=2, target=kind)] == chosen
        assert [record["prediction"] for record in why(task, TEXT, n_steps=2, target=f"B-{kind}")] == chosen
    start, end = TEXT.index("never"), TEXT.index("never") + 5
    (stretch,) = why(task, TEXT, n_steps=2, target={"start": start, "end": end, "label": "LOC"})
    chance = stretch["prediction"].pop("score")
    assert 0 < chance < 1
    assert stretch["prediction"] == {"entity_group": "LOC", "word": "never", "start": start, "end": end}
    (likeliest,) = why(task, TEXT, n_steps=2, target={"start": start + 1, "end": end - 1})
    assert likeliest["prediction"]["word"] == "never"
    (token,) = why(task, TEXT, n_steps=2, target=[1, 3])  # as TorchServe's example: [CLS] is token 0
    assert (token["prediction"]["word"], token["target"]) == ("the", "LOC")
    for bad, status in (
        ("NOPE", 422), (9, 422), ([99, 0], 422), ([0, 0], 422), ([1], 400), (True, 400), (["a", 0], 400),
        ({"start": 3, "end": 4}, 422), ({"start": 0, "end": 3, "label": "NOPE"}, 422),
    ):  # fmt: skip
        assert refused(task, TEXT, target=bad) == (status, "parameters.target"), bad
    for bad, field in (({"start": 0, "stop": 3}, "stop"), ({"start": 3}, "end"), ({"start": 3, "end": 3}, "end"),
                       ({"start": 0, "end": 999}, "end"), ({"start": -1, "end": 3}, "start")):  # fmt: skip
        assert refused(task, TEXT, target=bad) == (400, f"parameters.target.{field}"), bad


def test_answers_by_rank_and_stretch(pipelines):
    task = pipelines["question_answering"]
    asked = {"question": "was it good?", "context": TEXT}
    (answer,) = task.answer([Call(asked, "", {"top_k": 3})])
    for rank, wanted in enumerate(answer.results[0]):
        records = why(task, asked, target=rank, n_steps=2)
        assert [record["target"] for record in records] == ["start", "end"]
        assert [record["prediction"]["answer"] for record in records] == [wanted["answer"]] * 2
    assert why(task, asked, n_steps=2)[0]["prediction"]["answer"] == answer.results[0][0]["answer"]
    (start, _) = why(task, asked, target={"start": 4, "end": 7}, n_steps=2)
    assert start["prediction"]["answer"] == "tea"
    assert {word["field"] for word in start["words"]} == {"question", "context"}
    for bad, status in (
        (-1, 422), ("tea", 400), (99, 422), (100, 422), ({"start": 3, "end": 4}, 422), ([1], 400), (False, 400),
        ([], 400), ("", 400), ("9" * 5000, 400),
    ):  # fmt: skip
        assert refused(task, asked, target=bad) == (status, "parameters.target"), bad
    several = {"question": ["was it good?", "who?"], "context": TEXT, "target": "x"}
    assert refused(task, several) == (400, "inputs.target")
    records = why(task, asked, target=0, handle_impossible_answer=True, n_steps=2)
    assert len(records) == 2


def test_generated_text_tokens_and_texts(pipelines):
    task = pipelines["text_generation"]
    greedy = {"do_sample": False, "n_steps": 2}
    (answer,) = task.answer([Call("the tea", "", {"do_sample": False, "max_new_tokens": 20})])
    records = why(task, "the tea", **greedy, max_new_tokens=20)
    said = "".join(record["target"] for record in records)
    assert said == answer.results[0]["generated_text"][: len(said)]
    assert len(records) == 20
    assert len(why(task, "the tea", **greedy)) == 16
    assert why(task, "the tea", **greedy, max_new_tokens=20, target=3)[0]["prediction"] == records[3]["prediction"]
    given = why(task, "the tea", **greedy, target="room")
    assert "".join(record["target"] for record in given).strip() == "room"
    assert [record["prediction"]["index"] for record in records] == list(range(20))
    assert {record["prediction"]["tokens"] for record in records} == {20}
    for record in records:
        assert record["prediction"]["score"] == pytest.approx(math.exp(record["input_score"]))
    for bad, status in ((99, 422), (-1, 422), ("a " * 70, 422), ("", 422), ([1], 400), (True, 400)):
        assert refused(task, "the tea", target=bad, **greedy) == (status, "parameters.target"), bad


def test_what_is_explained_is_what_is_written(tmp_path):
    """Beside longer answers a row is filled up with padding, and a stop text is no part of it."""
    folder = models.save(tmp_path, head="text_generation", vocab_size=300)
    models.byte_level().save_pretrained(folder)
    task = load(folder, "text_generation")
    texts = ["the tea", "a", "tea room Pt", "never"]
    stop = task.answer([Call("the tea", "", {"do_sample": False})])[0].results[0]["generated_text"][4:6]
    parameters = {"do_sample": False, "max_new_tokens": 20, "stop": stop}
    said = [
        answer.results[0]["generated_text"] for answer in task.answer([Call(text, "", parameters) for text in texts])
    ]
    together = task.explain([Call(text, "", parameters | {"n_steps": 1}) for text in texts])
    for text, wanted, answer in zip(texts, said, together, strict=True):
        names = [record["target"] for record in answer.results[0].records]
        assert "".join(names) == wanted.rstrip("\ufffd")
        assert names == [record["target"] for record in why(task, text, **parameters, n_steps=1)]
    assert len(said[0]) < max(map(len, said))


def test_a_character_of_several_tokens_is_named_by_the_last(tmp_path):
    folder = models.save(tmp_path, head="text_generation", vocab_size=300)
    models.byte_level().save_pretrained(folder)
    records = why(load(folder, "text_generation"), "the tea", target="😀é", n_steps=1)
    assert [record["target"] for record in records] == ["", "", "", "😀", "", "é"]


def test_too_much_for_one_answer_is_refused_and_its_neighbours_are_not(pipelines, monkeypatch):
    monkeypatch.setattr("hfserve.pipeline.MOST_SHARES", 100)
    mode = "token_classification"
    every = {"aggregation_strategy": "none", "ignore_labels": [], "n_steps": 1}
    big, small = pipelines[mode].explain([Call([TEXT] * 2, "inputs", every), Call("tea", "inputs", every)])
    assert (int(big.status), big.field) == (413, "inputs[0]")
    assert isinstance(small, Answer)


def test_thousands_of_entities_are_refused_in_time(folders):
    """Before any of them is explained, and before their places are looked for one by one."""
    task = load(folders["token_classification"], "token_classification")
    every = {"aggregation_strategy": "none", "ignore_labels": []}
    start = time.monotonic()
    assert refused(task, "tea, " * 10_000, **every)[0] == 413
    assert time.monotonic() < start + 20


def test_blanks_that_are_tokens_are_explained_like_others(tmp_path):
    folder = models.save(tmp_path, "gpt2", head="token_classification", vocab_size=300)
    models.byte_level().save_pretrained(folder)
    task = load(folder, "token_classification")
    for strategy in task.task.describe()["aggregation_strategies"]:
        parameters = {"aggregation_strategy": strategy, "ignore_labels": []}
        (answer,) = task.answer([Call("a  tea  \n 😀", "", parameters)])
        records = why(task, "a  tea  \n 😀", **parameters, n_steps=1)
        assert [record["prediction"] for record in records] == answer.results[0]
        if strategy == "none":  # each token of the emoji has a score of its own
            assert len({record["input_score"] for record in records[-4:]}) == 4


def test_labels_of_one_name_are_explained_as_one(tmp_path):
    folder = models.save(tmp_path, head="token_classification")
    (folder / "index_to_name.json").write_text('{"label_list": ["O", "X", "X", "Y", "Y"]}')
    task = load(folder, "token_classification")
    assert task.task._indices("Y") == [3, 4]


def test_a_label_that_predictions_leave_out_is_explained_where_it_is_asked_for(pipelines):
    task = pipelines["token_classification"]
    (answer,) = task.answer([Call(TEXT, "", {"ignore_labels": []})])
    wanted = [record for record in answer.results[0] if record["entity_group"] == "O"]
    assert [record["prediction"] for record in why(task, TEXT, target="O", n_steps=1)] == wanted


# --- exact places


def test_a_long_text_is_explained_where_it_was_judged(pipelines):
    """The windows of a text have places of their own, and the answer those of the text."""
    task = pipelines["token_classification"]
    text = "never a room " * 30 + "the tea"
    (record,) = why(task, text, n_steps=2, target={"start": len(text) - 3, "end": len(text), "label": "PER"})
    assert record["words"][-1]["text"] == "tea"
    assert record["words"][-1]["end"] == len(text)
    assert record["words"][0]["start"] > 100
    for word in record["words"]:
        assert text[word["start"] : word["end"]] == word["text"]


def test_what_is_cut_is_told_and_has_no_places(pipeline):
    (answer,) = pipeline.explain([Call("tea " * 100)])
    assert answer.results[0].records[0]["truncated"] == {"tokens": 102, "used": 64}
    assert len(answer.results[0].records[0]["words"]) == 62


def test_the_cut_beginning_of_a_prompt_has_no_places(pipelines):
    text = "tea " * 60 + "the room"
    (record,) = why(pipelines["text_generation"], text, max_new_tokens=10, truncation=True, do_sample=False, target=0)
    assert record["words"][0]["start"] == 8 * 4
    assert record["words"][-1]["text"] == "room"


def test_words_that_come_split_keep_their_places(pipelines):
    words = ["the", "tea-room", "was", "good"]
    (record,) = why(
        pipelines["token_classification"], words, is_split_into_words=True, n_steps=2, target={"start": 4, "end": 12}
    )
    joined = " ".join(words)
    for token in record["tokens"]:
        assert joined[token["start"] : token["end"]] == token["text"]
    assert record["prediction"]["word"] == "tea-room"


def test_bytes_of_one_character_are_one_word(tmp_path):
    folder = models.save(tmp_path, "gpt2", vocab_size=300)
    models.byte_level().save_pretrained(folder)
    text = "Café 東 😀 a"
    (record,) = why(load(folder), text, n_steps=2)
    assert [word["text"] for word in record["words"]] == ["Café", "東", "😀", "a"]
    assert len(record["tokens"]) > 10
    total = sum(token["score"] for token in record["tokens"])
    assert sum(word["score"] for word in record["words"]) == pytest.approx(total)


# --- models


def test_embeddings_are_found_where_a_layer_sees_other_ids_made_of_them():
    ids = torch.tensor([[5, 6, 7], [8, 9, 5]])
    embeddings = torch.randn(2, 3, 4)
    output = torch.randn(2, 3, 4)
    assert aligned(ids, ids, embeddings, output) is embeddings
    assert torch.equal(aligned(ids.T, ids, embeddings, output), embeddings.transpose(0, 1))
    moved = torch.cat([torch.zeros(2, 1, dtype=torch.long), ids[:, :-1]], dim=1)
    found = aligned(moved, ids, embeddings, output)
    assert torch.equal(found[:, 1:], embeddings[:, :-1])
    assert torch.equal(found[:, 0], output[:, 0])
    assert aligned(ids + 1, ids, embeddings, output) is None
    assert aligned(torch.zeros(2, 5), ids, embeddings, output) is None


def test_a_model_that_embeds_no_tokens_is_refused(pipeline, monkeypatch):
    other = torch.nn.Embedding(200, 32)
    monkeypatch.setattr(pipeline.engine.model, "get_input_embeddings", lambda: other)
    monkeypatch.setattr(pipeline, "explainer", None)
    assert refused(pipeline, TEXT) == (422, "inputs")


def test_without_captum_predictions_go_on(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline, "explainer", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert refused(pipeline, TEXT) == (422, "inputs")
    assert isinstance(pipeline.answer([Call(TEXT)])[0], Answer)


def test_nothing_is_made_before_it_is_asked_for(folders):
    pipeline = load(folders["sequence_classification"])
    pipeline.answer([Call(TEXT)])
    assert pipeline.explainer is None
    why(pipeline, TEXT)
    assert isinstance(pipeline.explainer, Explainer)


def test_switched_off_it_is_refused_and_nothing_is_made(folders):
    pipeline = load(folders["sequence_classification"], captum_explanation=False)
    assert refused(pipeline, TEXT)[0] == 422
    assert pipeline.explainer is None
    assert isinstance(pipeline.answer([Call(TEXT)])[0], Answer)


def test_explanations_leave_no_hook_and_no_gradient_behind(pipeline):
    before = pipeline.answer([Call(TEXT)])
    why(pipeline, TEXT)
    assert not any(module._forward_hooks for module in pipeline.engine.model.modules())
    assert not any(
        parameter.requires_grad or parameter.grad is not None for parameter in pipeline.engine.model.parameters()
    )
    assert pipeline.answer([Call(TEXT)]) == before
