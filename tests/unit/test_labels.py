"""What a model's outputs are called: its own names, or those of an index_to_name.json in either shape."""

import json

import pytest
from hfserve.errors import ConfigError
from hfserve.tasks.labels import read_labels

from tests import models

MODEL = models.bert(num_labels=3)


def read(folder, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "index_to_name.json").write_text(text, encoding="utf-8")
    return read_labels(folder, MODEL)


def test_without_the_file_the_models_own_names_hold(tmp_path):
    assert read_labels(tmp_path, MODEL) == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize(
    "content",
    [
        {"0": "O", "1": "B-PER", "2": "I-PER"},
        {"2": "I-PER", "0": "O", "1": "B-PER"},
        {"label_list": "[O, B-PER, I-PER]"},
        {"label_list": "O,B-PER , I-PER"},
        {"label_list": "['O', 'B-PER', \"I-PER\"]"},
        {"label_list": ["O", "B-PER", "I-PER"]},
    ],
)
def test_every_shape_names_the_labels_in_their_order(tmp_path, content):
    assert read(tmp_path, content) == ["O", "B-PER", "I-PER"]


@pytest.mark.parametrize(
    "content",
    [
        {"0": "a", "1": "b"},
        {"0": "a", "1": "b", "3": "d"},
        {"0": "a", "1": "b", "2": "c", "3": "d"},
        {"label_list": "[a, b]"},
        {"label_list": ["a", "b", "c", "d"]},
        {"label_list": {"0": "a", "1": "b", "2": "c"}},
        {"a": 0, "b": 1, "c": 2},
        ["a", "b", "c"],
        "[a, b, c]",
    ],
)
def test_names_that_do_not_fit_the_model_are_refused(tmp_path, content):
    with pytest.raises(ConfigError, match=r'must name each of the 3 labels: \{"0": "name", ...\} or \{"label_list"'):
        read(tmp_path, content)
