"""Whether the words that an explanation names are those that decide, on real sentences that the starter never saw."""

import random
import time

import pytest
import torch
from hfserve.config import parse_config
from hfserve.forms import Call
from hfserve.pipeline import Pipeline

from scripts.configs import archive_config
from scripts.console import ARTIFACTS
from scripts.download_models import prepare
from scripts.training.sequence_classification import FOLDER, read

DRAWS = 10  # of three random words


@pytest.fixture(scope="module")
def starter():
    config = archive_config(ARTIFACTS / "sequence_classification" / "model-config.yaml")
    folder = prepare(config.name, config.content["handler"])
    eager = {"handler": {"mode": "sequence_classification", "engine": "eager"}}
    return Pipeline.load(folder, parse_config(eager), torch.device("cpu"))


def without(text, words):
    for word in sorted(words, key=lambda word: -word["start"]):
        text = text[: word["start"]] + text[word["end"] :]
    return text


def chances(pipeline, texts, labels):
    (answer,) = pipeline.answer([Call(texts, "", {"top_k": None})])
    scores = [{record["label"]: record["score"] for record in records} for records in answer.results]
    return torch.tensor([score[label] for score, label in zip(scores, labels, strict=True)])


def test_the_top_words_matter_more_than_random_ones(starter):
    """Removing three words each, on at least 80% of the held-out sentences; the share is the mean of ten draws."""
    texts = [row.text for row in read(FOLDER / "exam_final.tsv")]
    (answer,) = starter.explain([Call(texts, "", {"n_steps": 24})], time.monotonic() + 600)
    records = [result.records[0] for result in answer.results]
    labels = [record["target"] for record in records]
    words = [[word for word in record["words"] if any(map(str.isalnum, word["text"]))] for record in records]
    assert len(texts) >= 200
    assert min(map(len, words)) > 3
    whole = chances(starter, texts, labels)

    def moved(chosen):
        cut = [without(text, some) for text, some in zip(texts, chosen, strict=True)]
        return (chances(starter, cut, labels) - whole).abs()

    top = moved([sorted(some, key=lambda word: -word["score"])[:3] for some in words])
    rng = random.Random(0)
    shares = [float((top > moved([rng.sample(some, 3) for some in words])).float().mean()) for _ in range(DRAWS)]
    assert sum(shares) / DRAWS >= 0.8, shares
