"""The reference of explanations, tested by itself: the numbers add up, and two ways to them agree."""

import math

import pytest
import torch
from transformers import AutoTokenizer

from tests import attributions, models, reference

TEXT = "the tea was not good, never a bad room"
QUESTION = "was it good?"
CAUSAL = list(models.BARE)
ENCODERS = [name for name in models.ARCHITECTURES if name not in CAUSAL]
COMBINATIONS = [(head, name) for head in models.HEADS for name in (CAUSAL if head == "text_generation" else ENCODERS)]
COMBINATIONS += [("sequence_classification", name) for name in CAUSAL] + [("token_classification", "gpt2")]


def explain(folder, head, text=TEXT, question=QUESTION, **how):
    if head == "sequence_classification":
        return attributions.classification(folder, text, 1, **how)
    if head == "token_classification":
        return attributions.entity(folder, text, "PER", [1, 2], **how)
    if head == "question_answering":
        return attributions.answer(folder, question, text, "start", 3, **how)
    return attributions.generated(folder, text, [6, 7, 8], 2, **how)


@pytest.fixture(scope="module", params=COMBINATIONS, ids="-".join)
def saved(request, tmp_path_factory):
    head, architecture = request.param
    return models.save(tmp_path_factory.mktemp("model"), architecture, head=head), head, architecture


def test_attributions_add_up_to_what_the_text_changed(saved):
    folder, head, _ = saved
    found = explain(folder, head)
    moved = float(found.attributions.abs().sum())
    assert moved > 0.1, "the text changes nothing here, so that anything would add up"
    assert float(found.attributions.sum()) == pytest.approx(found.score - found.baseline, abs=1e-3 * moved)
    assert len(found.tokens) == len(found.part) == len(found.offsets) == len(found.attributions)
    still = torch.tensor([part is None for part in found.part])
    assert not found.attributions[still].any()


def test_the_baseline_is_the_text_in_padding_tokens(saved):
    folder, head, architecture = saved
    if architecture == "roberta" or (architecture in CAUSAL and head == "sequence_classification"):
        pytest.skip("this model counts positions, or looks for the last token, by ids")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    nothing = tokenizer.pad_token or tokenizer.eos_token
    found = explain(folder, head, steps=1)
    padded = [" ".join([nothing] * found.part.count(part)) for part in (0, 1)]
    question, text = padded if head == "question_answering" else ("", padded[0])
    given = explain(folder, head, text, question, steps=1)
    assert found.baseline == pytest.approx(given.score, rel=1e-4, abs=1e-4)


def test_the_hook_gives_what_captum_gives_at_the_layer(saved):
    folder, head, architecture = saved
    if architecture in ("t5", "xlnet"):
        pytest.skip("LayerIntegratedGradients cannot explain this model")
    by_layer, by_hook = (explain(folder, head, steps=20, by_layer=way).attributions for way in (True, False))
    assert torch.allclose(by_layer, by_hook, atol=1e-5)


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_the_score_is_the_log_odds_of_the_probability(architecture, tmp_path):
    folder = models.save(tmp_path, architecture, num_labels=3)
    (wanted,) = reference.scores(folder, [{"text": TEXT, "text_pair": QUESTION}])
    for label, (_, p) in enumerate(wanted.items()):
        found = attributions.classification(folder, TEXT, label, pair=QUESTION, steps=1)
        assert found.score == pytest.approx(math.log(p / (1 - p)), abs=1e-3)
    ((_, p),) = list(reference.scores(folder, [TEXT], "sigmoid")[0].items())[:1]
    assert attributions.classification(folder, TEXT, 0, "sigmoid", steps=1).score == pytest.approx(
        math.log(p / (1 - p)), abs=1e-3
    )


@pytest.mark.parametrize("architecture", CAUSAL)
def test_generated_tokens_are_explained_as_captum_does(architecture, tmp_path):
    folder = models.save(tmp_path, architecture, head="text_generation")
    new = [6, 11, 4]
    wanted = attributions.generated_by_captum(folder, TEXT, new, steps=50)
    for place in range(len(new)):
        found = attributions.generated(folder, TEXT, new, place, steps=50)
        assert torch.allclose(found.attributions, wanted[place], atol=1e-4)
        assert wanted[place].abs().max() > 0.1
