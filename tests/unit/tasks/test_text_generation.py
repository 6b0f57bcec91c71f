import json
import time

import pytest
import torch
from hfserve.errors import ConfigError
from hfserve.forms import Answer, Call

from tests import models, reference

MODE = "text_generation"
PROMPTS = ["the tea was", "a", "good bad never room the tea was not", "not tea", "never never"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def write(request, tmp_path_factory, asking):
    return asking(models.save(tmp_path_factory.mktemp("model"), request.param, head=MODE), MODE)


def texts(found):
    return [record["generated_text"] for record in found]


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 20},
        {"max_new_tokens": 9, "num_beams": 3},
        {"max_new_tokens": 15, "repetition_penalty": 1.8},
    ],
)
def test_greedy_and_beams_equal_generate_row_by_row(write, options):
    found = write(PROMPTS, do_sample=False, **options)
    assert texts(found) == reference.continuations(write.folder, PROMPTS, do_sample=False, **options)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.7}, {"top_p": 0.8}, {"top_k": 3}, {"temperature": 0.6}])
def test_what_is_drawn_with_a_seed_equals_generate_row_by_row(write, options):
    found = write(PROMPTS, do_sample=True, seed=11, max_new_tokens=12, **options)
    wanted = reference.continuations(write.folder, PROMPTS, seed=11, do_sample=True, max_new_tokens=12, **options)
    assert texts(found) == wanted
    assert texts(write(PROMPTS[1:3], do_sample=True, seed=11, max_new_tokens=12, **options)) == wanted[1:3]


def test_without_a_seed_it_draws_anew(write):
    assert len({write("tea", do_sample=True, max_new_tokens=20)["generated_text"] for _ in range(4)}) > 1


def test_a_seed_of_one_call_decides_nothing_for_others(write):
    """A call without a seed in the same batch, behind the seeded one, must not follow from that seed."""
    drawn = set()
    for _ in range(3):
        seeded = Call("tea", "body", {"do_sample": True, "seed": 1, "max_new_tokens": 16})
        other = Call("tea", "body", {"do_sample": True, "max_new_tokens": 16})
        drawn.add(write.pipeline.answer([seeded, other])[1].results[0]["generated_text"])
    assert len(drawn) > 1


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(write):
    whole = write("the tea was", max_new_tokens=24)["generated_text"]
    stop = whole[5:7]
    assert write("the tea was", max_new_tokens=24, stop=stop)["generated_text"] == whole[: whole.index(stop)]
    assert write("the tea was", max_new_tokens=24, stop=["@@", stop])["generated_text"] == whole[: whole.index(stop)]
    assert write("the tea was", max_new_tokens=24, stop=[])["generated_text"] == whole


def test_it_stops_working_when_all_rows_have_stopped(write, monkeypatch):
    made = []
    generate = write.pipeline.engine.generate

    def counted(tensors, **options):
        made.append(generate(tensors, **options))
        return made[-1]

    monkeypatch.setattr(write.pipeline.engine, "generate", counted)
    whole = write("the tea was", max_new_tokens=30)["generated_text"]
    write("the tea was", max_new_tokens=30, stop=whole[3:5])
    assert made[1].shape[1] < made[0].shape[1]


def test_the_prompt_is_put_before_on_demand(write):
    alone = write("The  TEA", max_new_tokens=5)["generated_text"]
    assert write("The  TEA", max_new_tokens=5, return_full_text=True)["generated_text"] == "The  TEA" + alone


def test_an_end_token_ends_the_row_alone(write):
    """Drawn wildly, some rows come upon the end token early: those are short, the others go on."""
    wild = {"do_sample": True, "temperature": 5.0, "max_new_tokens": 40}
    lengths = set()
    for seed in range(6):
        found = texts(write(PROMPTS, seed=seed, **wild))
        assert found == reference.continuations(write.folder, PROMPTS, seed=seed, **wild)
        lengths |= {len(text.split()) for text in found}
    assert min(lengths) < 40 == max(lengths)


def test_what_does_not_fit_is_refused_with_the_numbers(write):
    status, field, message = write.refusal(["tea", "a " * 70])
    assert (status, field) == (422, "inputs[1]")
    assert "70 tokens and the model takes 64" in message
    status, field, message = write.refusal("a " * 50, max_new_tokens=20)
    assert (status, field) == (422, "parameters.max_new_tokens")
    assert "ask for 14 or fewer" in message


def test_a_prompt_is_cut_at_its_beginning_on_demand_and_that_is_told(write):
    long = " ".join("abcdefghij"[i % 10] for i in range(100))
    answer = write.answer(long, truncation=True, max_new_tokens=8)
    assert (answer.truncated[0].tokens, answer.truncated[0].used) == (100, 56)
    kept = " ".join(long.split()[-56:])
    assert answer.results[0] == write(kept, max_new_tokens=8)


def test_without_a_number_it_writes_what_fits(write):
    answer = write("a " * 60)
    assert len(write.pipeline.task.tokenizer(answer["generated_text"])["input_ids"]) <= 4


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"do_sample": 1}, "do_sample"),
        ({"do_sample": True, "temperature": 0}, "temperature"),
        ({"do_sample": True, "temperature": True}, "temperature"),
        ({"do_sample": True, "top_p": 1.5}, "top_p"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"top_k": 5}, "top_k"),
        ({"do_sample": False, "temperature": 0.5}, "temperature"),
        ({"do_sample": True, "num_beams": 2}, "num_beams"),
        ({"num_beams": 0}, "num_beams"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"return_full_text": "yes"}, "return_full_text"),
        ({"truncation": False}, "truncation"),
        ({"max_length": 5}, "max_length"),
    ],
)
def test_a_bad_parameter_is_named(write, parameters, field):
    status, where, _ = write.refusal("tea", **parameters)
    assert (status, where) == (400, f"parameters.{field}")


def test_an_answer_that_takes_too_long_is_a_504(write, monkeypatch):
    generate = write.pipeline.engine.generate

    def slow(tensors, **options):
        assert options["max_time"] <= 0.1
        time.sleep(0.15)
        return generate(tensors, **options)

    monkeypatch.setattr(type(write.pipeline.config), "time_budget", property(lambda self: 0.1))
    monkeypatch.setattr(write.pipeline.engine, "generate", slow)
    status, field, _ = write.refusal(["tea", "a"])
    assert (status, field) == (504, "inputs[0]")


def test_the_model_s_own_settings_hold_where_a_request_says_nothing(tmp_path, asking):
    models.save(tmp_path, "gpt2", head=MODE)
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "top_k": 1, "eos_token_id": 3}')
    write = asking(tmp_path, MODE)
    greedy = write("the tea was", max_new_tokens=9, do_sample=False)
    assert write("the tea was", max_new_tokens=9) == greedy  # the likeliest of one
    assert isinstance(write.answer("tea", temperature=1.5), Answer)


@pytest.mark.parametrize(("name", "value"), [("temperature", 2), ("repetition_penalty", 2), ("top_p", 1)])
def test_whole_numbers_are_numbers(write, name, value):
    options = {"do_sample": True, "seed": 3, "max_new_tokens": 6}
    assert write("tea", **options, **{name: value}) == write("tea", **options, **{name: float(value)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 10**400),
        ("temperature", 1e-300),
        ("top_p", 10**400),
        ("repetition_penalty", 1e-300),
        ("seed", 2**64),
        ("num_beams", 2**63),
        ("num_beams", 10_000),
        ("top_k", 10**20),
        ("stop", ["x"] * 17),
        ("stop", "x" * 201),
    ],
)
def test_numbers_beyond_reason_are_refused(write, name, value):
    sampled = {} if name in ("num_beams", "stop") else {"do_sample": True}
    assert write.refusal("tea", **sampled, **{name: value})[:2] == (400, f"parameters.{name}")


def test_a_seed_decides_nothing_after_a_failure(write, monkeypatch):
    def fail(tensors, **options):
        raise RuntimeError("no")

    with monkeypatch.context() as patched:
        patched.setattr(write.pipeline.engine, "generate", fail)
        assert write.refusal("tea", do_sample=True, seed=7)[0] == 500
    assert torch.initial_seed() != 7


@pytest.mark.parametrize(
    "own", [{"num_return_sequences": 2, "num_beams": 2}, {"stop_strings": ["a"]}, {"return_dict_in_generate": True}]
)
def test_settings_that_answer_in_another_shape_have_no_effect(tmp_path, asking, own):
    models.save(tmp_path, "gpt2", head=MODE)
    (tmp_path / "generation_config.json").write_text(json.dumps({**own, "eos_token_id": 3}))
    found = asking(tmp_path, MODE)(["tea", "a"], max_new_tokens=5)
    assert [set(record) for record in found] == [{"generated_text"}] * 2


@pytest.mark.parametrize("own", [{"temperature": 0.0, "do_sample": True}, {"num_beams": 4, "do_sample": True}])
def test_settings_that_cannot_be_followed_refuse_to_load(tmp_path, asking, own):
    models.save(tmp_path, "gpt2", head=MODE)
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    with pytest.raises(ConfigError, match="generation_config.json"):
        asking(tmp_path, MODE)
