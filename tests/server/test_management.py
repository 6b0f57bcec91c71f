"""The management API on a live TorchServe: workers, batches and versions, and a swap under load that nobody notices."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import requests

from scripts.console import ROOT, CommandError
from scripts.swap import registered_versions, swap
from scripts.torchserve import Server, archives_in
from tests import models
from tests.server.test_operations import register
from tests.serving import UNPROVEN, archive, config, serving

# left to whoever serves the archive
OPEN = {"minWorkers": None, "maxWorkers": None, "batchSize": None, "maxBatchDelay": None, "responseTimeout": 10}
LISTED = {"open": {"1.0": {"minWorkers": 1, "maxWorkers": 1, "batchSize": 8, "maxBatchDelay": 5}}}
LONG = ["the tea was good " * 10] * 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models with other answers to the same text."""
    return [models.save(tmp_path_factory.mktemp("seeds") / str(seed), seed=seed) for seed in (3, 4)]


@pytest.fixture(scope="module")
def live(tmp_path_factory, folders):
    folder = tmp_path_factory.mktemp("managed")
    store = folder / "store"
    archive(store, "one", folders[0])
    archive(store, "open", folders[0], OPEN)
    with serving(folder, store, models=json.dumps(LISTED)) as server:
        yield server


def manage(live, method, path, **parameters):
    return requests.request(method, f"{live.management}/models/{path}", params=parameters, timeout=120)


def described(live, path):
    return manage(live, "GET", path).json()[0]


def ready(live, path, workers):
    states = [worker["status"] for worker in described(live, path)["workers"]]
    return states == ["READY"] * workers


def score(live, model, inputs="tea"):
    reply = live.ask(model, inputs, top_k=None)
    assert reply.status_code == 200, reply.text
    return {record["label"]: round(record["score"], 4) for record in reply.json()}


def test_workers_and_batches_from_config_properties(live):
    about = described(live, "open")
    assert {key: about[key] for key in LISTED["open"]["1.0"]} == LISTED["open"]["1.0"]
    assert ready(live, "open", 1)


def test_versions_workers_and_batches_over_http(live, folders):
    archive(live.store / "built", "open", folders[1], OPEN, version="2.0").rename(live.store / "second.mar")
    reply = register(live, "second.mar", batch_size=4, max_batch_delay=7, initial_workers=1)
    assert reply.status_code == 200, reply.text
    about = described(live, "open/2.0")
    assert [about[key] for key in ("batchSize", "maxBatchDelay", "minWorkers", "maxWorkers")] == [4, 7, 1, 1]
    assert manage(live, "PUT", "open/2.0", min_worker=2, max_worker=2, synchronous="true").status_code == 200
    assert ready(live, "open/2.0", 2)

    first, second = score(live, "open/1.0"), score(live, "open/2.0")
    assert first != second
    assert score(live, "open") == first
    assert register(live, "second.mar").status_code == 409
    assert manage(live, "DELETE", "open/1.0").status_code == 403  # the default
    assert manage(live, "PUT", "open/2.0/set-default").status_code == 200
    assert score(live, "open") == second
    assert manage(live, "PUT", "open/1.0", min_worker=0, max_worker=0, synchronous="true").status_code == 200
    assert live.ask("open/1.0", "tea").status_code == 503
    assert manage(live, "DELETE", "open/1.0").status_code == 200
    assert live.ask("open/1.0", "tea").status_code == 404
    assert score(live, "open") == second
    (live.store / "second.mar").unlink()


def rounded(results):
    """The first text's best label; scores differ in the last digits by how many requests meet in a batch."""
    return results[0][0]["label"], round(results[0][0]["score"], 4)


@contextmanager
def asked(live, model, clients=4):
    """Clients who ask a model on and on with long requests; each one's statuses and answers."""
    over = threading.Event()

    def client(_):
        told, last = [], False
        while not last:
            last = over.wait(0.1)  # asked once more after that: by then the new version alone answers
            reply = live.ask(model, LONG)
            told.append((reply.status_code, rounded(reply.json()) if reply.ok else reply.text))
        return told

    told = []
    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, i) for i in range(clients)]
        try:
            yield told
        finally:
            over.set()
        told += [one.result() for one in running]


@pytest.mark.parametrize(("name", "version", "workers", "model"), [("one", "1.0", 1, 1), ("open", "2.0", 2, 0)])
def test_a_swap_loses_no_request(live, folders, name, version, workers, model):
    """The new version has one worker: this is also how workers are taken away with nothing lost."""
    assert described(live, name)["modelVersion"] == version
    assert ready(live, name, workers)
    old = rounded(live.ask(name, LONG).json())
    with asked(live, name) as told:
        assert swap(live.server, live.run_dir, config(name), folders[model], None)[0] == version
        new = rounded(live.ask(name, LONG).json())
    assert old != new
    for client in told:
        assert {status for status, _ in client} == {200}
        answers = [answer for _, answer in client]
        turn = answers.index(new)
        assert turn > 0
        assert answers == [old] * turn + [new] * (len(answers) - turn)

    assert registered_versions(live.management, name) == [f"{float(version) + 1}"]
    assert ready(live, name, 1)
    assert sorted(path.name for path in live.store.glob(f"*{name}*")) == [f"{name}.mar"]
    assert Server.find(live.run_dir).archives[name] == archives_in(live.store)[name]


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        ({"max_length": 500}, "one 9.0 does not load, and the old version stays: .*handler.max_length is 500, but the"),
        ({"max_characters": 5}, "one 9.0 fails its self-test, and the old version stays: sample_.* is answered 413"),
    ],
)
def test_a_version_that_fails_is_taken_out_again(live, folders, monkeypatch, handler, told):
    if "max_length" in handler:  # which the builder would refuse before
        monkeypatch.setattr("scripts.build_archive._claims", lambda *_: UNPROVEN)
    before = registered_versions(live.management, "one"), score(live, "one"), sorted(live.store.iterdir())
    with pytest.raises(CommandError, match=told):
        swap(live.server, live.run_dir, config("one", {"handler": handler}), folders[0], "9.0")
    after = registered_versions(live.management, "one"), score(live, "one"), sorted(live.store.iterdir())
    assert before == after


def test_a_version_that_is_there_or_a_model_that_is_not_changes_nothing(live, folders):
    with pytest.raises(CommandError, match="is registered already"):
        swap(live.server, live.run_dir, config("one"), folders[0], described(live, "one")["modelVersion"])
    with pytest.raises(CommandError, match="The server does not serve three: `make archive` builds it"):
        swap(live.server, live.run_dir, config("three"), folders[0], None)


def test_a_server_that_swapped_runs_already(live):
    words = [sys.executable, "-m", "scripts.server", "start", "--run-dir", live.run_dir, "--model-store", live.store]
    started = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    assert started.stdout.startswith("The server runs already at")
