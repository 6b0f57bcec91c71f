"""README's commands, run as they stand, in a fresh copy of the repository on ports of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.console import ROOT
from tests import models
from tests.serving import PORTS, free_ports

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def checkout(folder: Path) -> None:
    """What git would clone, with the changes that are not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkout that shares this environment and the encoder, if it is here, to save two downloads."""
    folder = tmp_path_factory.mktemp("checkout")
    checkout(folder)
    environment = Path(sys.executable).parents[1]
    (folder / ".venv").symlink_to(environment, target_is_directory=True)
    shutil.copy(folder / "requirements.lock", environment / "requirements.lock")
    encoder = ROOT / "models" / "all-MiniLM-L6-v2"
    if encoder.exists():
        shutil.copytree(encoder, folder / "models" / encoder.name)
    models.save(folder / "my-model")
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    config = folder / "config.properties"
    config.write_text(moved(config.read_text(), ports))
    yield folder, ports
    subprocess.run(["make", "stop"], cwd=folder, capture_output=True)


def moved(text: str, ports: dict[str, str]) -> str:
    for port, free in ports.items():
        text = text.replace(port, free)
    return text


def run(language: str, block: str, folder: Path, tmp: Path) -> subprocess.CompletedProcess:
    """-e: every line must succeed; curl fails on an error status only when told to."""
    shell = f'curl() {{ command curl --silent --show-error --fail-with-body "$@" && echo; }}\n{block}'
    words = ["bash", "-euc", shell] if language == "bash" else [sys.executable, "-c", block]
    environment = {**os.environ, "TMPDIR": str(tmp), "TEMP": str(tmp), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)


def test_the_commands_of_the_readme(place, tmp_path_factory):
    folder, ports = place
    tmp = tmp_path_factory.mktemp("t")
    outputs = {}
    for language, block in BLOCKS:
        block = block.replace("make test\n", "")  # this is it
        block = block.replace("torchserve --stop", wait_for_it(ports) + "torchserve --stop\n" + gone(ports))
        done = run(language, moved(block, ports), folder, tmp)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        outputs[block] = done.stdout
    told = "\n".join(outputs.values())
    assert re.search(r"POSITIVE +0\.9\d\d", outputs[BLOCKS[0][1].replace("make test\n", "")])
    assert '[{"label": "POSITIVE", "score": 0.9' in told
    assert '{"predictions": [[{"label": "POSITIVE"' in told
    assert re.search(r"\+0\.\d+ +█+ +friendly", outputs[BLOCKS[0][1].replace("make test\n", "")])
    assert '{"explanations": [{"target": "POSITIVE"' in told
    assert '"outputs": [{"name": "explanation"' in told
    assert '{"words": ["The", "manual"' in told
    assert "<!doctype html>" in (folder / "explanation.html").read_text()
    assert (folder / "explanation.svg").read_text().startswith("<svg")
    assert re.search(r"^Entity  PER.*^Answer  start.*^Answer  end.*^One day .* She was sad", told, re.M | re.S)
    assert '"outputs": [{"name": "label"' in told
    assert '"weights_sha256"' in told or '"sha256"' in told
    assert "ts_inference_requests_total" in told
    assert "LABEL_" in told  # the model of one's own
    assert '"word": "ada lovelace", "start": 0, "end": 12' in told
    assert re.search(r'"answer": "(our neighbour )?Rosa".*"answer": "Porto"', told)
    assert '"generated_text": "' in told
    assert "is as it was built" in told
    assert "1.0 has answered all it had" in told


def wait_for_it(ports: dict[str, str]) -> str:
    ask = f"curl -sf http://127.0.0.1:{ports['8080']}/predictions/sequence_classification -d tea"
    return f"for i in $(seq 300); do command {ask} -H 'Content-Type: text/plain' && break; sleep 0.5; done\n"


def gone(ports: dict[str, str]) -> str:
    return f"for i in $(seq 100); do command curl -s http://127.0.0.1:{ports['8080']}/ping || break; sleep 0.2; done\n"


def test_every_file_of_the_map_exists():
    for line in re.search(r"## The map.*?```text\n(.*?)```", README, re.DOTALL)[1].splitlines():
        for name in re.split(r"  +", line)[:2]:
            if "/" in name and "<" not in name and " " not in name:
                assert (ROOT / name).exists(), name


def test_every_command_is_listed():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True).stdout
    named = set(re.findall(r"\bmake ([a-z]+)", README)) - {"alone"}
    assert named <= {line.split()[0] for line in listed.splitlines()}
