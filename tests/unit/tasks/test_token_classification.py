import json

import pytest
from hfserve.forms import Answer, Call, write
from hfserve.tasks.entities import STRATEGIES

from tests import models, reference
from tests.contract.cases import same
from tests.texts import random_texts

MODE = "token_classification"


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def ner(request, tmp_path_factory, asking):
    return asking(models.save(tmp_path_factory.mktemp("model"), request.param, head=MODE), MODE)


def plain(records):
    return [{**record, "score": float(record["score"])} for record in records]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_equals_transformers_pipeline_where_a_text_fits(ner, strategy):
    texts = random_texts(100, seed=7, longest=7)
    wanted = reference.pipeline_entities(ner.folder, texts, aggregation_strategy=strategy)
    for found, records in zip(ner(texts, aggregation_strategy=strategy), wanted, strict=True):
        same(found, plain(records))


@pytest.mark.parametrize(("strategy", "stride"), [*((name, None) for name in STRATEGIES), ("simple", 0), ("max", 31)])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_equals_the_definition_over_windows(ner, strategy, stride):
    texts = random_texts(40, seed=8, longest=80)
    wanted = reference.entities(ner.folder, texts, strategy, models.MAX_TOKENS, stride)
    for found, records in zip(ner(texts, aggregation_strategy=strategy, stride=stride), wanted, strict=True):
        same(found, plain(records))


def test_every_token_is_judged_once_and_stands_where_it_says(ner):
    _, tokenizer = reference.plain(ner.folder, MODE)
    for text in random_texts(20, seed=9, longest=120):
        records = ner(text, aggregation_strategy="none", ignore_labels=[])
        tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        assert [(record["start"], record["end"]) for record in records] == tokens["offset_mapping"]
        first = records[0]["index"]
        assert [record["index"] for record in records] == list(range(first, first + len(records)))


def test_entities_never_overlap_nor_go_out_of_order(ner):
    for text in random_texts(20, seed=10, longest=150):
        ends = 0
        for record in ner(text, ignore_labels=[]):
            assert ends <= record["start"] < record["end"] <= len(text)
            ends = record["end"]


@pytest.mark.parametrize("target", [{"start": 4, "end": 7}, [2]])
def test_a_kind_of_entity_is_asked_for_by_the_name_that_answers_give_it(ner, target):
    def explained(label):
        asked = {**target, "label": label} if isinstance(target, dict) else [*target, label]
        (answer,) = ner.pipeline.explain([Call({"text": "the tea was good", "target": asked}, "inputs", explain=True)])
        return answer.results[0].to_json()

    assert explained("PER") == explained("B-PER")
    assert explained("PER")[0]["target"] == "PER"


def test_words_equal_the_pipeline_and_count_in_the_joined_text(ner):
    words = "the tea was not good in Zürich , never !".split()
    wanted = reference.pipeline_entities(ner.folder, words, is_split_into_words=True, aggregation_strategy="simple")
    found = ner(words, is_split_into_words=True)
    same(found, plain(wanted[0] if isinstance(wanted[0], list) else wanted))
    both = ner([words, words[:4]], is_split_into_words=True)
    same(both[0], found)
    joined = ner(words, is_split_into_words=True, aggregation_strategy="none", ignore_labels=[], delimiter="__")
    text = "__".join(words).lower()
    for record in joined:
        if record["word"].isalpha():
            assert text[record["start"] : record["end"]].startswith(record["word"][:1])


def test_long_lists_of_words_are_windowed_too(ner):
    words = [word for text in random_texts(30, seed=11) for word in text.split()]
    records = ner(words, is_split_into_words=True, aggregation_strategy="none", ignore_labels=[])
    text = " ".join(words)
    assert len(records) > 3 * models.MAX_TOKENS
    assert all(text[record["start"] : record["end"]].strip() for record in records)


def test_labels_can_be_left_out(ner):
    text = random_texts(1, seed=12, longest=40)[0]
    whole = ner(text, ignore_labels=[])
    kinds = {record["entity_group"] for record in whole}
    assert len(kinds) > 1
    for kind in kinds:
        assert ner(text, ignore_labels=[kind]) == [record for record in whole if record["entity_group"] != kind]


@pytest.mark.parametrize(
    ("payload", "parameters", "field", "told"),
    [
        ("x", {"stride": 33}, "parameters.stride", "or less"),
        ("x", {"stride": -1}, "parameters.stride", "whole number from 0"),
        ("x", {"ignore_labels": "O"}, "parameters.ignore_labels", "list of labels"),
        ("x", {"aggregation_strategy": "mean"}, "parameters.aggregation_strategy", "none, simple, first"),
        ("x", {"is_split_into_words": True}, "inputs", "list of words"),
        (["a", 5], {"is_split_into_words": True}, "inputs[1]", "JSON string"),
        ([["a"], [""]], {"is_split_into_words": True}, "inputs[1][0]", "empty"),
        ({"text": "x", "txt": "y"}, {}, "inputs.txt", "Unknown key"),
    ],
)
def test_errors_name_the_field(ner, payload, parameters, field, told):
    status, where, message = ner.refusal(payload, **parameters)
    assert (status, where) == (400, field)
    assert told in message


def test_the_short_form_and_the_tensors(ner):
    texts = random_texts(3, seed=13, longest=9)
    results = ner(texts)
    task = ner.pipeline.task
    assert task.brief([{"entity_group": "PER", "word": "ada", "score": 1.0}]) == '[["ada", "PER"]]'
    told = write(Call(texts, form="v2"), Answer(results, {}), task, "m")
    columns = {output["name"]: output for output in told["outputs"]}
    assert set(columns) == {"entity_group", "score", "word", "start", "end", "item"}
    assert columns["item"]["data"] == [i for i, records in enumerate(results) for _ in records]
    assert {tuple(column["shape"]) for column in columns.values()} == {(sum(map(len, results)),)}
    assert columns["start"]["data"] == [record["start"] for records in results for record in records]


def test_a_tokenizer_without_offsets_is_refused(tmp_path, asking, monkeypatch):
    from hfserve.errors import ConfigError
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(ConfigError, match="gives no character offsets: save the model with a fast tokenizer"):
        asking(models.save(tmp_path, head=MODE), MODE)


def configured(folder, **settings):
    """The tokenizer's own configuration, changed as its author might have."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("settings", [{"padding_side": "left"}, {"truncation_side": "left"}])
def test_a_tokenizer_that_pads_or_cuts_on_the_left_changes_nothing(tmp_path, asking, settings):
    folder = models.save(tmp_path, head=MODE)
    texts = random_texts(12, seed=14, longest=60)
    wanted = asking(folder, MODE)(texts, ignore_labels=[])
    other = asking(configured(folder, **settings), MODE)
    for text, records in zip(texts, wanted, strict=True):
        same(other(text, ignore_labels=[]), records)
    same(other(texts, ignore_labels=[]), wanted)


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory, asking):
    folder = models.save(tmp_path_factory.mktemp("bytes"), "gpt2", head=MODE, vocab_size=300)
    models.byte_level().save_pretrained(folder)
    return asking(folder, MODE)


def test_a_blank_before_a_word_is_no_part_of_an_entity(bytewise):
    text = "Anna lives  in Paris,\n at 東京 e\u0301t\u00e9"
    for record in bytewise(text, ignore_labels=[], aggregation_strategy="first"):
        inside = text[record["start"] : record["end"]]
        assert inside == inside.strip()


def test_words_that_came_split_stay_words_whatever_joins_them(bytewise):
    words = ["Anna", "lives", "in", "Paris"]
    spaced, joined = (
        bytewise(words, is_split_into_words=True, delimiter=mark, aggregation_strategy="none", ignore_labels=[])
        for mark in (" ", "")
    )
    assert [record["entity"] for record in spaced] == [record["entity"] for record in joined]
    grouped = [
        bytewise(words, is_split_into_words=True, delimiter=mark, aggregation_strategy="first", ignore_labels=[])
        for mark in (" ", "\n", "")
    ]
    assert len({len(records) for records in grouped}) == 1


def test_a_hundred_thousand_labels_cost_nothing(ner):
    text = " ".join(random_texts(20, seed=15))
    many = [f"label {i}" for i in range(100_000)]
    assert ner(text, ignore_labels=[*many, "O"]) == ner(text)
