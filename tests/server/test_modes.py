"""All modes in one TorchServe, and archives that were changed after they were built."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.console import ROOT, CommandError
from scripts.torchserve import launch, wait_until_ready
from tests import models
from tests.contract.cases import CASES
from tests.serving import archive, properties, serving


@pytest.fixture(scope="module")
def models_of(tmp_path_factory):
    return {mode: models.save(tmp_path_factory.mktemp(mode), head=mode) for mode in CASES}


@pytest.fixture(scope="module")
def all_modes(tmp_path_factory, models_of):
    folder = tmp_path_factory.mktemp("server")
    for mode, model in models_of.items():
        archive(folder / "store", mode, model, {"handler": {"mode": mode}, "batchSize": 16, "maxBatchDelay": 50})
    with serving(folder, folder / "store") as server:
        yield server


@pytest.mark.parametrize("mode", CASES)
def test_answers_equal_the_plain_model_s(all_modes, models_of, mode):
    """32 clients at once, so that requests meet in batches."""
    case = CASES[mode]
    items = case.items(64, 31)
    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda item: all_modes.ask(mode, item, **case.parameters), items))
    for reply, wanted in zip(replies, case.wanted(models_of[mode], items), strict=True):
        assert reply.status_code == 200, reply.text
        case.agree(reply.json(), wanted, 1e-4)


@pytest.mark.parametrize("mode", CASES)
def test_bad_requests_among_good_ones_cost_only_themselves(all_modes, mode):
    case = CASES[mode]
    good = [(item, case.parameters) for item in case.items(12, 32)]
    asked = [pair for i, one in enumerate(good) for pair in ((one, case.bad[i % 4]) if i % 3 == 0 else (one,))]
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda pair: all_modes.ask(mode, pair[0], **pair[1]), asked))
    for pair, reply in zip(asked, replies, strict=True):
        assert (reply.status_code == 200) == (pair in good), reply.text
        if pair not in good:
            assert reply.json()["error"]["field"] != "body"


def test_curl(all_modes, tmp_path):
    """As a user types it: JSON, plain text, the short form."""
    url = f"{all_modes.inference}/predictions"

    def curl(*words):
        done = subprocess.run(["curl", "-s", "--fail-with-body", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        return done.stdout

    as_json = ("-H", "Content-Type: application/json")
    entities = json.loads(curl(f"{url}/token_classification", *as_json, "-d", '{"inputs": "the tea was good"}'))
    assert {"entity_group", "score", "word", "start", "end"} == set(entities[0])
    pair = '{"question": "who?", "context": "the tea was good"}'
    answer = json.loads(curl(f"{url}/question_answering", *as_json, "-d", pair))
    assert "the tea was good"[answer["start"] : answer["end"]] == answer["answer"]
    assert curl(f"{url}/question_answering", *as_json, "-H", "Accept: text/plain", "-d", pair) == answer["answer"]
    (tmp_path / "prompt.txt").write_text("the tea was")
    assert json.loads(curl(f"{url}/text_generation", "-T", str(tmp_path / "prompt.txt")))["generated_text"]


def test_explain_shows_and_saves_what_the_server_would(all_modes, tmp_path):
    config = all_modes.run_dir.parent / "config.properties"
    page, picture = tmp_path / "a.html", tmp_path / "a.svg"
    words = [sys.executable, "-m", "scripts.explain", "--config", config, "--model", "question_answering"]
    words += ["--question", " who? ", "--method", "occlusion", "--html", page, "--svg", picture, "the [b] tea was good"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Answer  start  .*^question\nwho.*^context\nthe.*^Answer  end  ", done.stdout, re.M | re.S)
    body = {"question": " who? ", "context": "the [b] tea was good", "parameters": {"method": "occlusion"}}
    for saved, kind in ((page, "text/html"), (picture, "image/svg+xml")):
        reply = all_modes.post("question_answering", "/explanations/{}", json=body, headers={"Accept": kind})
        assert saved.read_text() == reply.text


def test_kserve_forms(all_modes):
    v1 = all_modes.post("token_classification", "/v1/models/{}:predict", json={"instances": ["the tea", "bad"]})
    assert len(v1.json()["predictions"]) == 2
    tensors = [
        {"name": name, "shape": [2], "datatype": "BYTES", "data": data}
        for name, data in (("question", ["who?", "was it?"]), ("context", ["the tea was good", "never bad"]))
    ]
    v2 = all_modes.post("question_answering", "/v2/models/{}/infer", json={"inputs": tensors}).json()
    columns = {output["name"]: output["data"] for output in v2["outputs"]}
    assert columns["item"] == [0, 1]
    assert len(columns["answer"]) == 2
    asked = {"inputs": [tensors[1]], "parameters": {"ignore_labels": []}}
    v2 = all_modes.post("token_classification", "/v2/models/{}/infer", json=asked).json()
    columns = {output["name"]: output["data"] for output in v2["outputs"]}
    assert set(columns["item"]) == {0, 1}
    assert len(columns["item"]) == len(columns["start"])


def test_the_description_tells_what_was_built_and_proven(all_modes):
    for mode in CASES:
        about = all_modes.describe(mode)["customizedMetadata"]
        assert about["mode"] == mode
        assert 0 <= about["golden_difference"] < 1e-5
        assert about["built_with"]["torch"] == about["libraries"]["torch"]


def flip(mar, into):
    """One bit of the weights, with the zip's own checksums made right again."""
    with zipfile.ZipFile(mar) as old, zipfile.ZipFile(into, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "model.safetensors":
                content = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
            new.writestr(name, content)


def add_pickle(mar, into):
    shutil.copy(mar, into)
    with zipfile.ZipFile(into, "a") as new:
        new.writestr("pytorch_model.bin", b"\x80\x04.")


def point_outside(mar, into):
    shutil.copy(mar, into)
    with zipfile.ZipFile(into, "a") as new:
        new.writestr("../../../../../../../../tmp/evil-from-an-archive.py", b"import os")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (flip, "model.safetensors is not as it was built"),
        (add_pickle, "holds pytorch_model.bin, which was not built into it"),
        (point_outside, "changed.mar: .*Zip Slip.*evil-from-an-archive.py"),
    ],
)
def test_a_changed_archive_never_becomes_ready(tmp_path, models_of, change, told):
    store, run_dir = tmp_path / "store", tmp_path / "run"
    mar = archive(tmp_path / "honest", "changed", models_of["sequence_classification"])
    store.mkdir()
    change(mar, store / "changed.mar")
    run_dir.mkdir()
    server = launch(properties(tmp_path), store, run_dir)
    try:
        with pytest.raises(CommandError, match=told):
            wait_until_ready(server, run_dir)
    finally:
        server.end(run_dir)
    assert not Path("/tmp/evil-from-an-archive.py").exists()
