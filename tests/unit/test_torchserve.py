import json
import os
import shutil
import subprocess
import sys

import psutil
import pytest

from scripts.addresses import Addresses
from scripts.console import ROOT, CommandError
from scripts.torchserve import Server, archives_in, reason
from tests.serving import archive, free_ports


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    return tmp_path / "run"


def properties(folder, **keys):
    path = folder / "config.properties"
    path.write_text("\n".join(f"{key}={value}" for key, value in keys.items()))
    return path


def test_archives_go_by_the_name_they_are_served_by(tmp_path, model_dir):
    built = archive(tmp_path, "tiny", model_dir)
    assert list(archives_in(tmp_path)) == ["tiny"]
    shutil.copy(built, tmp_path / "copy.mar")
    with pytest.raises(CommandError, match="Two archives in .* serve as 'tiny'"):
        archives_in(tmp_path)
    built.unlink()
    assert list(archives_in(tmp_path)) == ["tiny"]  # under its other file name
    (tmp_path / ".hidden.mar").write_text("what a swap builds, and TorchServe passes over")
    assert list(archives_in(tmp_path)) == ["tiny"]
    (tmp_path / "broken.mar").write_text("no zip")
    with pytest.raises(CommandError, match=r"broken\.mar is no model archive: build it again"):
        archives_in(tmp_path)


def test_addresses_that_cannot_be_listened_on_are_told(tmp_path):
    (port,) = free_ports(1)
    keys = {"management_address": "http://127.0.0.1:1", "inference_address": f"http://127.0.0.1:{port}/"}
    assert Addresses.read(properties(tmp_path, **keys)).inference == f"http://127.0.0.1:{port}/"
    for address, told in {
        "unix:/tmp/x.sock": "is no address: write http://host:port",
        "http://localhost": "is no address",
        "http://192.0.2.1:8080": "Cannot listen on http://192.0.2.1:8080",  # a documentation address, no machine's own
    }.items():
        with pytest.raises(CommandError, match=told):
            Addresses.read(properties(tmp_path, inference_address=address)).taken()
    with pytest.raises(CommandError, match="There is no .*nowhere"):
        Addresses.read(tmp_path / "nowhere")


def test_what_a_dead_server_left_is_removed(tmp_path, run_dir):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    scratch = tmp_path / "scratch"
    (scratch / "models").mkdir(parents=True)
    Server(ended.pid, 0.0, str(scratch), {}).note(run_dir)
    assert Server.find(run_dir) is None
    assert not scratch.exists()
    assert not (run_dir / "server.json").exists()


def test_a_process_that_only_has_the_pid_is_not_the_server_and_lives_on(tmp_path, run_dir):
    other = subprocess.Popen(["sleep", "60"])
    try:
        Server(other.pid, psutil.Process(other.pid).create_time() - 3600, str(tmp_path / "scratch"), {}).note(run_dir)
        assert Server.find(run_dir) is None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


LOG = "2026-01-01T00:00:00,000 [INFO ] W-9000-tiny_1.0-stdout MODEL_LOG - {}\n"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["Backend worker process died.", "Traceback (most recent call last):", "ValueError: no"], "ValueError: no"),
        (
            ["Backend worker process died.", "  raise X", "hfserve.errors.ConfigError: a: b"],
            "hfserve.errors.ConfigError: a: b",
        ),
        (["Backend worker process died.", "AssertionError"], "AssertionError"),
        (["SomeError: told by a living worker"], ""),
    ],
)
def test_the_reason_is_the_last_line_of_the_traceback(run_dir, lines, told):
    (run_dir / "logs" / "model_log.log").write_text("".join(LOG.format(line) for line in lines))
    assert reason(run_dir, only_workers=True) == told


def test_the_reason_may_be_asked_of_one_worker_alone(run_dir):
    lines = [LOG.format(line) for line in ("Backend worker process died.", "ValueError: of version 1")]
    (run_dir / "logs" / "model_log.log").write_text("".join(lines))
    assert reason(run_dir, only_workers=True, worker="W-9001-tiny_2.0") == ""
    assert reason(run_dir, only_workers=True, worker="W-9000-tiny_1.0") == "ValueError: of version 1"


def test_a_worker_killed_again_and_again_is_noticed(run_dir):
    log = run_dir / "logs" / "ts_log.log"
    log.write_text("Retry worker: 9000 in 1 seconds.\n" * 2)
    assert reason(run_dir, only_workers=True) == ""
    log.write_text("Retry worker: 9000 in 1 seconds.\n" * 3)
    assert "killed 3 times; is there enough memory?" in reason(run_dir, only_workers=True)


@pytest.mark.parametrize("name", ["predict", "explain"])
def test_asking_without_a_server_is_a_sentence(tmp_path, name):
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    config = properties(tmp_path, inference_address=address, management_address=address)
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9"}  # which must not be asked
    words = [sys.executable, "-m", f"scripts.{name}", "--config", str(config), "tea"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"Error: No server listens at http://127.0.0.1:{port}: start one with `make start`.\n"


def test_a_note_is_read_as_it_was_written(tmp_path, run_dir):
    me = psutil.Process()
    server = Server(me.pid, me.create_time(), str(tmp_path / "scratch"), {"tiny": [1, 2]}, {"inference": "x"})
    server.note(run_dir)
    assert Server.find(run_dir) == server
    assert json.loads((run_dir / "server.json").read_text())["archives"] == {"tiny": [1, 2]}
