"""Explanations through a live TorchServe: beside predictions, in every form, within their time."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import psutil
import pytest
import requests

from tests import models, reference
from tests.contract.test_tasks import approximately
from tests.serving import archive, serving
from tests.texts import random_texts

TEXT = "the tea was not good, never a bad room"
LONG = "the tea was never good " * 10


@pytest.fixture(scope="module")
def explaining(tmp_path_factory, model_dir):
    folder = tmp_path_factory.mktemp("server")
    store = folder / "store"
    together = {"batchSize": 32, "maxBatchDelay": 300, "maxWorkers": 1, "minWorkers": 1}
    archive(store, "plain", model_dir, together)
    archive(store, "hasty", model_dir, together | {"responseTimeout": 5})
    archive(store, "silent", model_dir, {"handler": {"captum_explanation": False}})
    entities = models.save(tmp_path_factory.mktemp("entities"), head="token_classification")
    archive(store, "entities", entities, {"handler": {"mode": "token_classification"}})
    with serving(folder, store) as server:
        yield server


def explain(live, inputs, model="plain", accept="application/json", **parameters):
    body = {"inputs": inputs, "parameters": parameters}
    return live.post(model, "/explanations/{}", json=body, headers={"Accept": accept})


def ok(reply):
    assert reply.status_code == 200, reply.text
    return reply.json()


def in_parallel(*calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_it_explains_what_is_predicted(explaining):
    record = ok(explain(explaining, TEXT))
    (best,) = ok(explaining.ask("plain", TEXT))
    assert record["target"] == best["label"]
    assert record["prediction"] == {"label": best["label"], "score": pytest.approx(best["score"], abs=1e-5)}
    assert [TEXT[word["start"] : word["end"]] for word in record["words"]] == [word["text"] for word in record["words"]]
    assert record["converged"] is True


def test_any_label_by_name_or_index(explaining):
    for asked in (2, "LABEL_2"):
        assert ok(explain(explaining, TEXT, target=asked))["target"] == "LABEL_2"
        assert ok(explain(explaining, {"text": TEXT, "target": asked}))["target"] == "LABEL_2"
    reply = explain(explaining, [TEXT, {"text": TEXT, "target": "LABEL_9"}])
    assert reply.status_code == 422
    assert reply.json()["error"]["field"] == "inputs[1].target"


def test_every_form_is_answered_in_kind(explaining):
    record = ok(explain(explaining, TEXT))
    assert ok(explain(explaining, [TEXT, "tea"]))[0] == approximately(record)
    v1 = explaining.post("plain", "/v1/models/{}:explain", json={"instances": [TEXT]})
    assert ok(v1) == {"explanations": [record]}
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
    v2 = ok(explaining.post("plain", "/v2/models/{}/explain", json={"id": "7", "inputs": [tensor]}))
    assert (v2["id"], v2["outputs"][0]["shape"]) == ("7", [1])
    assert json.loads(v2["outputs"][0]["data"][0]) == record
    plain = explaining.post("plain", "/explanations/{}", data=TEXT, headers={"Content-Type": "text/plain"})
    assert ok(plain) == record


def test_how_it_is_shown_is_negotiated(explaining):
    record = ok(explain(explaining, TEXT))
    page = explain(explaining, TEXT, accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<script" not in page.text
    assert record["target"] in page.text
    picture = explain(explaining, TEXT, accept="image/svg+xml")
    assert picture.headers["content-type"] == "image/svg+xml"
    assert ElementTree.fromstring(picture.text).tag.endswith("svg")
    words = explain(explaining, TEXT, accept="text/plain").text.splitlines()
    assert words[0].startswith(record["target"])
    assert len(words) == 1 + len(record["words"])
    body = str({"text": TEXT, "target": 1, "parameters": {"format": "upstream"}}).encode()
    for reply in (
        explain(explaining, TEXT, accept="application/vnd.torchserve+json"),
        explain(explaining, TEXT, format="upstream"),
        explaining.post("plain", "/explanations/{}", data=body),
    ):
        shape = ok(reply)
        assert set(shape) == {"words", "importances", "delta"}
        assert len(shape["words"]) == len(shape["importances"]) == len(record["tokens"])


def test_entities_are_explained_one_by_one(explaining):
    entities = ok(explaining.ask("entities", TEXT))
    records = ok(explain(explaining, TEXT, model="entities", n_steps=4))
    assert [record["prediction"]["start"] for record in records] == [entity["start"] for entity in entities]
    asked = ok(explain(explaining, TEXT, model="entities", n_steps=4, target="PER"))
    assert asked == approximately([record for record in records if record["target"] == "PER"])


def test_switched_off_it_is_refused(explaining):
    reply = explain(explaining, TEXT, model="silent")
    assert reply.status_code == 422
    assert "captum_explanation" in reply.json()["error"]["message"]
    assert len(ok(explaining.ask("silent", TEXT))) == 1


# --- predictions and explanations in one batch


def test_a_mixed_batch_answers_each_row_its_own_kind(explaining, model_dir):
    """In any order, with bad rows of both kinds among them, on connections that are used again."""
    texts = random_texts(24, seed=5)
    wanted = reference.scores(model_dir, texts)

    def ask(i):
        with requests.Session() as session:
            for _ in range(2):
                route = "explanations" if i % 3 else "predictions"
                inputs = 5 if i % 7 == 6 else texts[i]
                parameters = {"n_steps": 5} if i % 3 else {"top_k": None}
                body = {"inputs": inputs, "parameters": parameters}
                reply = session.post(f"{explaining.inference}/{route}/plain", json=body, timeout=60)
                check(i, reply)

    def check(i, reply):
        if i % 7 == 6:
            assert (reply.status_code, reply.json()["error"]["field"]) == (400, "inputs")
        elif i % 3:
            assert reply.json()["n_steps"] == 5
            assert wanted[i][reply.json()["target"]] == pytest.approx(max(wanted[i].values()), abs=1e-4)
        else:
            assert {r["label"]: pytest.approx(r["score"], abs=1e-4) for r in ok(reply)} == wanted[i]

    in_parallel(*(lambda i=i: ask(i) for i in range(24)))


def test_predictions_do_not_wait_for_explanations_of_their_batch(explaining):
    """The one worker waits 300 ms for more after the first request of a batch: so they are in one."""

    def timed(call, wait=0.0):
        time.sleep(wait)
        start = time.monotonic()
        ok(call())
        return time.monotonic() - start

    why, *rest = in_parallel(
        lambda: timed(lambda: explain(explaining, [LONG] * 4, n_steps=900)),
        lambda: timed(lambda: explaining.ask("plain", "tea"), 0.1),
        lambda: timed(lambda: explaining.ask("plain", ["tea", "room"]), 0.1),
    )
    assert why > 1, "too short to tell"
    assert max(rest) < why / 2


def test_an_error_beside_an_explanation_keeps_its_body(explaining):
    """Of a row that TorchServe is told to stream it would send the headers alone."""
    for bad, status in ((5, 400), ("tea " * 400_000, 413)):
        why, *refused = in_parallel(
            lambda: explain(explaining, [LONG], n_steps=200), *[lambda bad=bad: explaining.ask("plain", bad)] * 2
        )
        ok(why)
        for reply in refused:
            assert (reply.status_code, reply.json()["error"]["code"]) == (status, status)


# --- within their time


def test_an_explanation_never_gets_its_worker_killed(explaining):
    """`responseTimeout` is 5 s, and what is asked takes minutes."""

    def workers():
        return {child.pid for child in psutil.Process(explaining.server.pid).children(recursive=True)}

    before = workers()
    reply = explain(explaining, [LONG] * 200, model="hasty", n_steps=1000)
    assert reply.status_code == 504
    assert "n_steps" in reply.json()["error"]["message"]
    assert len(ok(explain(explaining, [LONG], model="hasty"))) == 1
    assert workers() == before
    assert "Worker died" not in explaining.log()


def test_no_text_is_logged(explaining):
    secret = "xyzzy-plugh-7361"
    for inputs in (secret, {"text": secret, "target": secret}, [secret, 5]):
        explain(explaining, inputs)
    explain(explaining, "tea", target=secret)
    assert secret not in explaining.log()
