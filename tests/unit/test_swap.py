"""The steps of a swap that a live server shows too rarely: what is waited for, and what is said."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
import requests

from scripts import swap
from scripts.console import CommandError
from scripts.torchserve import Server, archive_files, archives_in
from tests.serving import archive, config, free_ports


@pytest.mark.parametrize(
    ("taken", "wanted", "chosen"),
    [(["1.0"], None, "2.0"), (["1.0", "10.3", "beta"], None, "11.0"), (["beta"], None, "1.0"), (["1.0"], "1.1", "1.1")],
)
def test_the_next_version_is_free(taken, wanted, chosen):
    assert swap.choose_version(taken, wanted) == chosen


@pytest.mark.parametrize(("wanted", "told"), [("1.0", "registered already"), ("../x", "is no version"), ("", "no ver")])
def test_a_version_that_cannot_be(wanted, told):
    with pytest.raises(CommandError, match=told):
        swap.choose_version(["1.0"], wanted)


def test_a_start_sees_the_new_archive_only_once_it_is_kept(tmp_path, model_dir):
    store, run_dir, me = tmp_path / "store", tmp_path, psutil.Process()
    archive(store, "tiny", model_dir).rename(store / "other-file-name.mar")
    server = Server(me.pid, me.create_time(), "", archives_in(store) | {"more": [1, 2]}, store=str(store))
    server.note(run_dir)
    hidden = swap.build_hidden(config("tiny"), model_dir, store, "2.0")
    assert archives_in(store)["tiny"] == server.archives["tiny"]
    assert [path.name for path in store.glob(".*")] == [hidden.name]
    swap.keep(server, run_dir, "tiny", hidden)
    assert [path.name for path in store.iterdir()] == ["other-file-name.mar"]
    assert Server.find(run_dir).archives == {"tiny": archives_in(store)["tiny"], "more": [1, 2]}
    assert (
        archive_files(store)["tiny"].read_bytes()
        == swap.build_hidden(config("tiny"), model_dir, store, "2.0").read_bytes()
    )


@pytest.fixture
def calls(monkeypatch):
    """What the old version looks like at each look; how long was waited for several workers."""
    looks, slept = [], []

    def about(pending, workers):
        states = [{"status": state} for state in workers]
        return [{"jobQueueStatus": {"pendingRequests": pending}, "workers": states, "responseTimeout": 9}]

    monkeypatch.setattr(swap, "manage", lambda *_, **__: about(*(looks.pop(0) if len(looks) > 1 else looks[0])))
    monkeypatch.setattr(swap, "ticks", lambda: iter(range(5)))
    monkeypatch.setattr(swap.time, "sleep", slept.append)
    return looks, slept


@pytest.mark.parametrize(
    ("looks", "described", "slept"),
    [
        ([(0, ["READY"])], 2, []),
        ([(3, ["READY"]), (1, ["READY"]), (0, ["READY"])], 2, []),
        ([(0, ["READY"]), (1, ["READY"]), (0, ["READY"])], 3, []),  # one came in late
        ([(0, ["READY", "READY"])], 2, [9]),
        ([(0, [])], 0, []),
        ([(0, ["UNLOADING"])], 0, []),  # no worker: nothing is being answered, a description never would be
    ],
)
def test_drained_is_an_empty_queue_and_workers_at_rest(calls, monkeypatch, looks, described, slept):
    asked = []
    monkeypatch.setattr(swap, "describe", lambda *words, **_: asked.append(words))
    calls[0].extend(looks)
    swap.drain("http://api", "tiny", "1.0")
    assert asked == [("http://api", "tiny/1.0")] * described
    assert calls[1] == slept


@pytest.mark.parametrize("looks", [[(1, ["READY"])], [(0, ["READY"])]])
def test_a_version_that_is_asked_on_and_on_stays(calls, monkeypatch, looks):
    def busy(*_, **__):
        raise requests.ReadTimeout

    monkeypatch.setattr(swap, "describe", busy)
    calls[0].extend(looks)
    with pytest.raises(
        CommandError, match="stays beside the new version: .* curl -X DELETE http://api/models/tiny/1.0"
    ):
        swap.drain("http://api", "tiny", "1.0")


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (405, {"message": "?"}, "make stop start` it with enable_model_api=true"),
        (
            409,
            {"message": "Model version 2.0 is already registered"},
            "^TorchServe refuses: Model version 2.0 is already",
        ),
        (200, None, "does not answer as TorchServe does"),
    ],
)
def test_what_the_management_api_refuses_is_a_sentence(status, body, told):
    class Stand(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode() if body else b"<html>")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Stand) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(CommandError, match=told):
            swap.manage("GET", f"http://127.0.0.1:{server.server_port}", "tiny")
        server.shutdown()


def test_no_server_is_a_sentence(tmp_path):
    (port,) = free_ports(1)
    with pytest.raises(CommandError, match=r"does not answer as TorchServe does \(ConnectionError\)"):
        swap.manage("GET", f"http://127.0.0.1:{port}", "tiny")
    with pytest.raises(CommandError, match="The server does not run: `make start` starts it"):
        swap.main(run_dir=tmp_path)
