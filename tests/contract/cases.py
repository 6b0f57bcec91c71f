"""What the law needs to know of each task: what to ask, what the plain model answers, and when two answers agree."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import models, reference
from tests.texts import random_texts

ENCODERS = ("bert", "distilbert", "roberta", "gpt2", "albert", "electra", "deberta", "xlnet", "t5")
TOLERANCE = 1e-4  # of a probability, fp32


@dataclass(frozen=True)
class Case:
    """items(count, seed): payloads of mixed length, some of them more than the model takes at once.

    wanted(folder, items): the plain model's answers. bad: calls as (payload, parameters) that must be refused.
    """

    items: Callable[[int, int], list]
    wanted: Callable[[Path, list], list]
    parameters: dict
    bad: list[tuple]
    architectures: tuple[str, ...] = ENCODERS
    engines: tuple[str, ...] = ("compiled", "torchscript", "aotinductor")
    agree: Callable = field(default=lambda found, wanted, tolerance: same(found, wanted, tolerance))


def same(found, wanted, tolerance=TOLERANCE):
    """Equal but for the rounding of numbers."""
    assert type(found) is type(wanted), (found, wanted)
    if isinstance(found, dict):
        assert found.keys() == wanted.keys()
        for key in found:
            same(found[key], wanted[key], tolerance)
    elif isinstance(found, list):
        assert len(found) == len(wanted), (found, wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other, tolerance)
    elif isinstance(found, float):
        assert found == pytest.approx(wanted, abs=tolerance)
    else:
        assert found == wanted


def by_label(found, wanted, tolerance=TOLERANCE):
    """Whatever the order: scores that are all but equal may change places."""
    same({r["label"]: r["score"] for r in found}, {r["label"]: r["score"] for r in wanted}, tolerance)


def best_span(found, wanted, tolerance=TOLERANCE):
    """Among spans as likely as the best, any is right."""
    likely = [record for record in wanted if record["score"] > wanted[0]["score"] - 2 * tolerance]
    (like,) = [record for record in likely if (record["start"], record["end"]) == (found["start"], found["end"])]
    same(found, like | {"score": float(like["score"])}, tolerance)


def texts_and_pairs(count, seed):
    texts = random_texts(count, seed=seed)
    return [{"text": text, "text_pair": "was good"} if i % 5 == 4 else text for i, text in enumerate(texts)]


def short_enough(item):
    """A text that is cut is told of apart; here the pairs stay whole."""
    return item if isinstance(item, str) else {**item, "text": item["text"][:20]}


def classification(folder, items):
    found = reference.scores(folder, items)
    return [[{"label": label, "score": score} for label, score in scores.items()] for scores in found]


def questions(count, seed):
    rng = random.Random(seed)
    contexts = random_texts(count, seed=seed, longest=30)
    asked = ["was it good?", "the tea", "never?", "who?"]
    return [{"question": rng.choice(asked), "context": context} for context in contexts]


def plain_entities(folder, texts):
    found = reference.entities(folder, texts, "simple", models.MAX_TOKENS)
    return [[{**record, "score": float(record["score"])} for record in records] for records in found]


def prompts(count, seed):
    rng = random.Random(seed)
    return [f"{' '.join(rng.choices([*models.WORDS[:4], 'tea', 'room'], k=rng.randint(1, 12)))}" for _ in range(count)]


def continued(folder, texts):
    found = reference.continuations(folder, texts, max_new_tokens=12, do_sample=False)
    return [{"generated_text": text} for text in found]


CASES = {
    "sequence_classification": Case(
        items=lambda count, seed: [short_enough(item) for item in texts_and_pairs(count, seed)],
        wanted=classification,
        parameters={"top_k": None},
        bad=[(5, {}), ("x", {"top_k": 0}), ("a " * 500, {"truncation": "error"}), ({"words": "x"}, {})],
        agree=by_label,
    ),
    "token_classification": Case(
        items=lambda count, seed: random_texts(count, seed=seed),
        wanted=plain_entities,
        parameters={},
        bad=[(5, {}), ("x", {"aggregation_strategy": "best"}), ("x", {"stride": 500}), ("  ", {})],
    ),
    "question_answering": Case(
        items=questions,
        wanted=lambda folder, items: reference.spans(folder, items, models.MAX_TOKENS),
        parameters={},
        bad=[("x", {}), ({"question": "who?"}, {}), ({"question": "a " * 60, "context": "tea"}, {}), ([], {})],
        agree=best_span,
    ),
    "text_generation": Case(
        items=prompts,
        wanted=continued,
        parameters={"max_new_tokens": 12, "do_sample": False},
        bad=[(5, {}), ("x", {"max_new_tokens": 0}), ("a " * 500, {}), ("x", {"temperature": 2.0})],
        architectures=("gpt2", "llama"),
        engines=(),
    ),
}
