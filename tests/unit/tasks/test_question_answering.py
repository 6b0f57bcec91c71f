import pytest
from hfserve.errors import ConfigError

from tests import models, reference
from tests.contract.cases import best_span, questions

MODE = "question_answering"
PAIR = {"question": "who?", "context": "the tea was good, the room was bad"}


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def qa(request, tmp_path_factory, asking):
    return asking(models.save(tmp_path_factory.mktemp("model"), request.param, head=MODE), MODE)


@pytest.mark.parametrize("options", [{}, {"longest": 3}, {"impossible": True}, {"stride": 0}, {"stride": 20}])
def test_equals_the_definition(qa, options):
    items = questions(25, 20)
    names = {"longest": "max_answer_len", "impossible": "handle_impossible_answer", "stride": "doc_stride"}
    found = qa(items, **{names[key]: value for key, value in options.items()})
    for one, wanted in zip(found, reference.spans(qa.folder, items, models.MAX_TOKENS, **options), strict=True):
        best_span(one, wanted)


def test_the_best_k_are_the_likeliest(qa):
    items = questions(10, 21)
    wanted = reference.spans(qa.folder, items, models.MAX_TOKENS)
    for found, spans in zip(qa(items, top_k=4), wanted, strict=True):
        assert [record["score"] for record in found] == pytest.approx([span["score"] for span in spans[:4]], abs=1e-5)
        assert len({(record["start"], record["end"]) for record in found}) == len(found)


def test_all_spans_together_are_at_most_certain(qa):
    spans = qa(PAIR, top_k=100, max_answer_len=100, align_to_words=False)
    assert 0 < sum(span["score"] for span in spans) <= 1 + 1e-5  # ends before beginnings have the rest
    with_none = qa(PAIR, top_k=100, max_answer_len=100, align_to_words=False, handle_impossible_answer=True)
    assert [span for span in with_none if not span["answer"]]
    assert sum(span["score"] for span in with_none) <= 1 + 1e-5


def test_answers_stand_where_they_say(qa):
    for item in questions(20, 22):
        for record in qa(item, top_k=5):
            assert item["context"][record["start"] : record["end"]] == record["answer"]


def test_answers_are_whole_words_unless_told_otherwise(qa):
    context = "incomprehensibilities zürich internationalisation"
    for record in qa({"question": "who?", "context": context}, top_k=20, max_answer_len=40):
        start, end = record["start"], record["end"]
        assert start == 0 or not (context[start - 1].isalnum() and context[start].isalnum())
        assert end == len(context) or not (context[end - 1].isalnum() and context[end].isalnum())
    pieces = qa({"question": "who?", "context": context}, top_k=50, align_to_words=False)
    assert any(record["answer"] not in context.split() for record in pieces)


def test_several_questions_on_one_context(qa):
    asked = ["who?", "was it good?", "the tea"]
    together = qa({"question": asked, "context": PAIR["context"]})
    assert together == [pytest.approx(qa({**PAIR, "question": question}), abs=1e-5) for question in asked]
    each = qa({"question": asked[:2], "context": [PAIR["context"], "never"]})
    assert each[1]["answer"] == "never"


@pytest.mark.parametrize(
    ("payload", "parameters", "field", "told"),
    [
        ("x", {}, "inputs", '{"question": "...", "context": "..."}'),
        ({"question": "who?"}, {}, "inputs.context", "Give a text"),
        ({**PAIR, "extra": 1}, {}, "inputs.extra", "Unknown key"),
        ([PAIR, {**PAIR, "question": ""}], {}, "inputs[1].question", "empty"),
        ({**PAIR, "question": ["who?", 5]}, {}, "inputs.question[1]", "Give a text"),
        ({"question": ["who?"], "context": ""}, {}, "inputs.context", "empty"),
        ({"question": ["who?", "x"], "context": ["a"]}, {}, "inputs.context", "2, one for each question"),
        ({"question": [], "context": "a"}, {}, "inputs", "empty"),
        (PAIR, {"top_k": 0}, "parameters.top_k", "whole number from 1"),
        (PAIR, {"max_answer_len": "x"}, "parameters.max_answer_len", "whole number"),
        (PAIR, {"doc_stride": 40}, "parameters.doc_stride", "or less"),
        (PAIR, {"handle_impossible_answer": 1}, "parameters.handle_impossible_answer", "true, false"),
    ],
)
def test_errors_name_the_field(qa, payload, parameters, field, told):
    status, where, message = qa.refusal(payload, **parameters)
    assert (status, where) == (400, field)
    assert told in message


def test_a_question_too_long_costs_only_itself(qa):
    long = {**PAIR, "question": "tea " * 60}
    status, where, message = qa.refusal([PAIR, long])
    assert (status, where) == (422, "inputs[1]")
    assert "60 tokens, and may have" in message


def test_the_short_form_is_the_answer(qa):
    assert qa.pipeline.task.brief(qa(PAIR)) == qa(PAIR)["answer"]
    assert qa.pipeline.task.brief(qa(PAIR, top_k=2)) == qa(PAIR)["answer"]


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory, asking):
    folder = models.save(tmp_path_factory.mktemp("bytes"), "gpt2", head=MODE, vocab_size=300)
    models.byte_level().save_pretrained(folder)
    return asking(folder, MODE)


@pytest.mark.parametrize("context", ["Anna lives in Paris", "  a \n\t b  ", "\u200b x", "हिन्दी भाषा e\u0301le\u0301ve"])
@pytest.mark.parametrize("align", [True, False])
def test_answers_are_never_empty_and_have_no_blanks_around(bytewise, context, align):
    found = bytewise({"question": "a", "context": context}, top_k=100, align_to_words=align)
    assert found
    for record in found:
        assert record["answer"] == context[record["start"] : record["end"]]
        assert record["answer"].strip() == record["answer"] != ""


def test_a_model_too_small_for_a_question_is_refused(tmp_path, asking):
    with pytest.raises(ConfigError, match="too little for a question and a context"):
        asking(models.save(tmp_path, head=MODE), MODE, max_length=5)


def test_most_and_longest_answers_have_bounds(qa):
    assert qa.refusal(PAIR, top_k=2**70)[:2] == (400, "parameters.top_k")
    assert qa.refusal(PAIR, max_answer_len=10**9)[:2] == (400, "parameters.max_answer_len")
