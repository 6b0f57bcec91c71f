import logging
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hfserve.config import FRONTEND_KEYS, CompileConfig, Config, HandlerConfig, parse_config, read_config
from hfserve.errors import ConfigError

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "model-config.yaml"


def config(**handler) -> Config:
    return parse_config({"handler": {"mode": "sequence_classification", **handler}})


def test_the_template_is_what_the_defaults_are():
    read = read_config(TEMPLATE)
    assert read.handler == HandlerConfig(mode="sequence_classification", model_name="starter")
    assert read.compile == CompileConfig()


@pytest.mark.parametrize("cls", [HandlerConfig, CompileConfig])
def test_every_key_is_in_the_template_with_a_comment(cls):
    lines = TEMPLATE.read_text().splitlines()
    for spec in fields(cls):
        found = [line for line in lines if line.strip().startswith(f"{spec.name}:")]
        assert found, f"{spec.name} is not in the template"
        assert all("#" in line for line in found), f"{spec.name} has no comment"


def test_front_end_keys_of_the_template_are_known_ones():
    assert set(yaml.safe_load(TEMPLATE.read_text())) - {"handler", "pt2"} <= FRONTEND_KEYS


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"handler": {"mode": "x", "max_lenght": 5}}, "handler.max_lenght .* did you mean max_length"),
        ({"handler": {"mode": "x"}, "batchsize": 4}, "batchsize .* did you mean batchSize"),
        (
            {"handler": {"mode": "x"}, "pt2": {"compile": {"enabled": True}}},
            "pt2.compile.enabled .* did you mean enable",
        ),
        ({"handler": {"mode": "x"}, "pt2": {"export": {}}}, "pt2.export"),
        ({"handler": {}}, "handler.mode is missing"),
        ({}, "handler must be a section"),
        ([], "model-config.yaml must be a section"),
        ({"handler": {"mode": "x", "max_length": "150"}}, "handler.max_length is '150': give int or null"),
        ({"handler": {"mode": "x", "max_rows": True}}, "handler.max_rows is True: give int"),
        ({"handler": {"mode": "x", "max_length": 0}}, "handler.max_length is 0"),
        ({"handler": {"mode": "x", "engine": "onnx"}}, "handler.engine 'onnx' is unknown: choose one of null, eager,"),
        ({"handler": {"mode": "x", "precision": "int8"}}, "handler.precision 'int8' is unknown"),
        ({"handler": {"mode": "x", "save_mode": "pickle"}}, "handler.save_mode 'pickle' is unknown"),
        ({"handler": {"mode": "x", "hardware": "tpu"}}, "handler.hardware 'tpu' is unknown"),
        ({"handler": {"mode": "x", "hardware": "neuron"}}, "set handler.max_length"),
        ({"handler": {"mode": "x", "engine": "eager", "save_mode": "torchscript"}}, "save_mode .* two engines"),
        (
            {"handler": {"mode": "x", "engine": "eager", "hardware": "neuron", "max_length": 9}},
            "hardware .* two engines",
        ),
        ({"handler": {"mode": "x", "engine": "torchscript", "model_parallel": True}}, "handler.model_parallel"),
        ({"handler": {"mode": "x", "batch_size": 0}}, "handler.batch_size is 0"),
        (
            {"handler": {"mode": "x", "engine": "compiled"}, "pt2": {"compile": {"enable": False}}},
            "handler.engine is 'compiled', but pt2.compile.enable is false",
        ),
        ({"handler": {"mode": "x"}, "responseTimeout": "1m"}, "responseTimeout is '1m'"),
        ({"handler": {"mode": "x"}, "pt2": {"compile": {"mode": "default", "options": {"a": 1}}}}, "mode and options"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_key(content, told):
    with pytest.raises(ConfigError, match=told):
        parse_config(content)


def test_broken_yaml_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "model-config.yaml"
    path.write_text("handler: [")
    with pytest.raises(ConfigError, match=r"model-config\.yaml cannot be read"):
        read_config(path)


def test_keys_of_the_upstream_example_are_understood_with_one_warning(caplog):
    handler = {
        "model_name": "bert-base-uncased",
        "mode": "sequence_classification",
        "do_lower_case": True,
        "num_labels": 2,
        "save_mode": "pretrained",
        "max_length": 150,
        "captum_explanation": True,
        "embedding_name": "bert",
        "hardware": None,
        "BetterTransformer": False,
        "model_parallel": False,
    }
    with caplog.at_level(logging.WARNING):
        read = parse_config({"handler": handler, "pt2": {"compile": {"enable": True, "mode": "reduce-overhead"}}})
    assert read.handler.max_length == 150
    assert read.handler.captum_explanation
    (record,) = caplog.records
    for key in ("do_lower_case", "num_labels", "embedding_name"):
        assert key in record.getMessage()
    assert "BetterTransformer" not in record.getMessage()
    caplog.clear()
    parse_config({"handler": {**handler, "num_labels": 0}})  # as it is where a model has no labels
    assert "num_labels" not in caplog.text


@pytest.mark.parametrize(
    ("handler", "engines"),
    [
        ({}, ("compiled", "eager")),
        ({"engine": "eager"}, ("eager",)),
        ({"engine": "compiled"}, ("compiled",)),
        ({"engine": "aotinductor"}, ("aotinductor",)),
        ({"save_mode": "torchscript"}, ("torchscript",)),
        ({"save_mode": "torchscript", "engine": "torchscript"}, ("torchscript",)),
        ({"save_mode": "torchscript", "hardware": "neuronx", "max_length": 150}, ("neuronx",)),
        ({"hardware": "neuron", "max_length": 150}, ("neuron",)),
    ],
)
def test_an_engine_that_is_asked_for_is_the_only_one(handler, engines):
    assert config(**handler).engines == engines


def test_upstream_keys_with_an_effect_say_what_they_mean_today(caplog):
    read = config(BetterTransformer=True, model_parallel=True, batch_size=4)
    (record,) = caplog.records
    for told in ("BetterTransformer (scaled-dot", "model_parallel (layers", "batch_size (batchSize at the top"):
        assert told in record.getMessage()
    assert read.handler.BetterTransformer
    assert read.handler.model_parallel
    caplog.clear()
    assert config(hardware="neuron", batch_size=4, max_length=150).handler.batch_size == 4
    assert not caplog.records


def test_reading_changes_nothing_of_what_is_read():
    content = {"handler": {"mode": "x", "num_labels": 2}, "pt2": {"compile": {"enable": False}}}
    parse_config(content)
    assert content == {"handler": {"mode": "x", "num_labels": 2}, "pt2": {"compile": {"enable": False}}}


def test_the_time_a_batch_may_take_ends_before_the_worker_is_killed():
    read = parse_config({"handler": {"mode": "x"}, "responseTimeout": 10})
    assert read.time_budget < 10
