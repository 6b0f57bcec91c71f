"""Answers through a live TorchServe equal plain transformers, by every request form, alone and in batches."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import reference
from tests.texts import random_texts

TEXTS = random_texts(200)
TOLERANCE = 1e-4
ALL = {"parameters": {"top_k": None}}
LABELS = ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.fixture(scope="module")
def wanted(folders):
    return reference.scores(folders["plain"], TEXTS)


def in_parallel(function, items, clients=32):
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(function, items))


def check(records, wanted):
    assert {record["label"]: pytest.approx(record["score"], abs=TOLERANCE) for record in records} == wanted


def check_best(label, wanted):
    best = max(wanted.values())
    assert wanted[label] == pytest.approx(best, abs=TOLERANCE)


def ok(reply):
    assert reply.status_code == 200, reply.text
    return reply.json()


# --- one text a request, 32 clients at a time: they meet in frontend batches of mixed length


def as_inputs(live, text):
    return ok(live.post("plain", json={"inputs": text, **ALL}))


def as_json_with_charset(live, text):
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return ok(live.post("plain", data=json.dumps({"inputs": text, **ALL}), headers=headers))


def as_upstream_json(live, text):
    return ok(live.post("plain", json={"text": text, "target": 1, **ALL}))


def as_upstream_file(live, text):
    """Single quotes and no content type, as `curl -T sample_text_captum_input.txt` sends TorchServe's samples."""
    body = {"text": text, "target": 1, "parameters": {"top_k": 3}}
    return ok(live.post("plain", data=str(body).encode()))


def as_form(live, text):
    return ok(live.post("plain", files={"data": (None, text), "parameters": (None, json.dumps(ALL["parameters"]))}))


def as_form_file(live, text):
    parts = {"data": ("text.txt", text.encode(), "text/plain"), "parameters": (None, '{"top_k": null}')}
    return ok(live.post("plain", files=parts))


def as_v1(live, text):
    answer = ok(live.post("plain", "/v1/models/{}:predict", json={"instances": [text], **ALL}))
    assert list(answer) == ["predictions"]
    return answer["predictions"][0]


def as_v2(live, text):
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
    answer = ok(live.post("plain", "/v2/models/{}/infer", json={"id": "x7", "inputs": [tensor], **ALL}))
    assert answer["model_name"] == "plain"
    assert answer["id"] == "x7"
    label, score = answer["outputs"]
    assert label["shape"] == score["shape"] == [1, 3]
    return [{"label": one, "score": other} for one, other in zip(label["data"], score["data"], strict=True)]


FORMS = [as_inputs, as_json_with_charset, as_upstream_json, as_upstream_file, as_form, as_form_file, as_v1, as_v2]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_equals_the_plain_model(live, wanted, form):
    for records, scores in zip(in_parallel(lambda text: form(live, text), TEXTS), wanted, strict=True):
        check(records, scores)


def test_one_at_a_time_equals_the_plain_model(live, wanted):
    for text, scores in zip(TEXTS, wanted, strict=True):
        check(ok(live.post("alone", json={"inputs": text, **ALL})), scores)


@pytest.mark.parametrize("headers", [{"Content-Type": "text/plain; charset=utf-8"}, {}], ids=["text", "untyped"])
def test_plain_text_equals_the_plain_model(live, wanted, headers):
    replies = in_parallel(lambda text: live.post("plain", data=text.encode(), headers=headers), TEXTS)
    for reply, scores in zip(replies, wanted, strict=True):
        (record,) = ok(reply)
        check_best(record["label"], scores)
        assert record["score"] == pytest.approx(max(scores.values()), abs=TOLERANCE)


def test_accept_text_gives_the_label(live, wanted):
    for text, scores in zip(TEXTS[:5], wanted, strict=False):
        reply = live.post("plain", data=text.encode(), headers={"Accept": "text/plain"})
        assert reply.headers["content-type"].startswith("text/plain")
        check_best(reply.text, scores)


@pytest.mark.parametrize("size", [2, 7, 32])
def test_lists_equal_the_plain_model(live, wanted, size):
    parts = [TEXTS[start : start + size] for start in range(0, 200, size)]
    answers = in_parallel(lambda part: as_inputs(live, part), parts, clients=8)
    for records, scores in zip([records for answer in answers for records in answer], wanted, strict=True):
        check(records, scores)


def test_v1_and_v2_lists_keep_their_order(live, wanted):
    part = TEXTS[:32]
    answer = ok(live.post("plain", "/v1/models/{}:predict", json={"instances": part, **ALL}))
    for records, scores in zip(answer["predictions"], wanted, strict=False):
        check(records, scores)
    tensor = {"name": "text", "shape": [32], "datatype": "BYTES", "data": part}
    label, score = ok(live.post("plain", "/v2/models/{}/infer", json={"inputs": [tensor]}))["outputs"]
    assert label["shape"] == [32, 1]
    for one, other, scores in zip(label["data"], score["data"], wanted, strict=False):
        check_best(one, scores)
        assert other == pytest.approx(scores[one], abs=TOLERANCE)


@pytest.mark.parametrize(("model", "function"), [("topics", "sigmoid"), ("stars", "none")])
def test_multi_label_and_regression_heads(live, folders, model, function):
    texts = TEXTS[:20]
    for records, scores in zip(
        ok(live.ask(model, texts, top_k=None)), reference.scores(folders[model], texts, function), strict=True
    ):
        check(records, scores)


def test_truncation_is_told_or_refused(live):
    long = "the tea was good " * 100
    (record,) = ok(live.ask("plain", long))
    assert record["truncated"] == {"tokens": 402, "used": 64}
    reply = live.post("plain", data=long.encode(), headers={"Accept": "text/plain"})
    assert reply.headers["x-truncated"] == "0;tokens=402;used=64"
    refused = live.ask("plain", long, truncation="error")
    assert refused.status_code == 422
    assert "402 tokens" in refused.json()["error"]["message"]


# --- bad rows among good ones


BAD = [
    ({"json": {"inputs": 5}}, 400, "inputs"),
    ({"json": {"inputs": ["fine", ""]}}, 400, "inputs[1]"),
    ({"json": {"inputs": "x", "parameters": {"topk": 2}}}, 400, "parameters.topk"),
    ({"json": {"inputs": "a " * 500, "parameters": {"truncation": "error"}}}, 422, "inputs"),
    ({"data": b'{"inputs": ', "headers": {"Content-Type": "application/json"}}, 400, "body"),
]


def test_five_bad_rows_of_32_cost_only_themselves(live):
    texts = random_texts(27, seed=5)
    alone = [ok(live.ask("plain", text, top_k=None)) for text in texts]
    requests = [{"json": {"inputs": text, **ALL}} for text in texts]
    for i, (bad, _, _) in enumerate(BAD):
        requests.insert(i * 7, bad)
    replies = in_parallel(lambda request: live.post("plain", **request), requests)
    bad = [replies.pop(i * 7) for i in reversed(range(len(BAD)))][::-1]
    for reply, (_, status, field) in zip(bad, BAD, strict=True):
        assert reply.status_code == status
        assert reply.json()["error"]["field"] == field
    for reply, expected in zip(replies, alone, strict=True):
        found = ok(reply)
        assert [record["label"] for record in found] == [record["label"] for record in expected]
        for one, other in zip(found, expected, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-6)


@pytest.mark.parametrize(
    ("request_", "status", "type_"),
    [
        ({"data": b"\x89PNG", "headers": {"Content-Type": "image/png"}}, 415, "UnsupportedMediaType"),
        ({"data": {"text": "x"}}, 415, "UnsupportedMediaType"),  # a form without `data`
        ({"json": {"inputs": ["x"] * 257}}, 413, "TooLarge"),
        ({"data": b""}, 400, "BadRequest"),
    ],
)
def test_errors_keep_their_status_through_torchserve(live, request_, status, type_):
    reply = live.post("plain", **request_)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["error"]["type"] == type_
    assert reply.json()["error"]["code"] == status


def test_no_request_text_is_logged(live):
    secret = "xyzzy-plugh-7361"
    for request in ({"json": {"inputs": secret}}, {"json": {"inputs": [secret, 5]}}, {"data": secret.encode()}):
        live.post("plain", **request)
    live.post("plain", data=f'{{"inputs": "{secret}'.encode(), headers={"Content-Type": "application/json"})
    assert secret not in live.log()


def test_the_model_describes_itself(live, folders):
    about = live.describe("topics")["customizedMetadata"]
    assert about["mode"] == "sequence_classification"
    assert about["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]
    assert about["engine"] == "eager"
    assert about["max_tokens"] == 64
    assert set(about["libraries"]) == {"python", "torch", "transformers", "tokenizers", "safetensors"}
    assert len(about["revision"].partition("+")[0]) == 40
