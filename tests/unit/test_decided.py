"""The models that were taught one rule follow it on texts they never saw, and plain Captum names the deciding token."""

import random

import pytest

from tests import attributions, reference
from tests.decided import DECIDES, random_text, save_decided

COUNT = 20
HOW = {"steps": 100}


@pytest.fixture(scope="module", params=DECIDES)
def decided(request, tmp_path_factory):
    mode = request.param
    return save_decided(tmp_path_factory.mktemp("decided"), mode), mode


def answered(folder, mode, text):
    """What the plain model says, and what it says by the rule."""
    words = text.split()
    at = words.index(DECIDES[mode]) if DECIDES[mode] in words else None
    start = None if at is None else len(" ".join(words[: at + 1])) + 1
    if mode == "sequence_classification":
        (scores,) = reference.scores(folder, [text])
        return max(scores, key=scores.get), f"LABEL_{int(at is not None)}"
    if mode == "token_classification":
        (records,) = reference.entities(folder, [text], "simple", limit=64)
        return [(r["entity_group"], r["start"]) for r in records], [] if at is None else [("PER", start)]
    if mode == "question_answering":
        ((best, *_),) = reference.spans(folder, [{"question": "was it", "context": text}], limit=64)
        return best["start"], start
    (said,) = reference.continuations(folder, [text], max_new_tokens=3, do_sample=False)
    return said.split(), ["the" if at is None else "room"] * 3


def explained(folder, mode, text):
    at = text.split().index(DECIDES[mode])  # each word is one token
    if mode == "sequence_classification":
        return attributions.classification(folder, text, 1, **HOW)
    if mode == "token_classification":
        return attributions.entity(folder, text, "PER", [at + 1], **HOW)
    if mode == "question_answering":
        return attributions.answer(folder, "was it", text, "start", at + 1, **HOW)
    room = attributions.loaded(folder, mode)[1].convert_tokens_to_ids("room")
    return attributions.generated(folder, text, [room, room, room], 2, **HOW)


def test_the_model_follows_its_rule(decided):
    folder, mode = decided
    rng = random.Random(7)
    kinds = [True] if mode == "question_answering" else [True, False]
    texts = [random_text(mode, rng, with_it) for with_it in kinds for _ in range(COUNT)]
    right = [said == wanted for said, wanted in (answered(folder, mode, text) for text in texts)]
    assert sum(right) >= 0.95 * len(texts)


def test_plain_captum_names_the_token_that_decided(decided):
    folder, mode = decided
    rng = random.Random(8)
    found = [explained(folder, mode, random_text(mode, rng)) for _ in range(COUNT)]
    named = [one for one in found if one.top == DECIDES[mode] and one.attributions[one.attributions.abs().argmax()] > 0]
    assert len(named) >= 19
