import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile

import pytest
import yaml

from scripts.build_archive import build, code_revision
from scripts.configs import ArchiveConfig, archive_config, merge
from scripts.console import ARTIFACTS, ROOT, CommandError
from tests import models

OVERLAY = {"handler": {"mode": "sequence_classification"}, "batchSize": 4}


def config(name="tiny", **overlay):
    template = yaml.safe_load((ROOT / "model-config.yaml").read_text())
    return ArchiveConfig(name, merge(merge(template, OVERLAY), overlay))


@pytest.fixture(scope="module")
def archive(tmp_path_factory, model_dir):
    return build(config(), model_dir, tmp_path_factory.mktemp("store"))


def test_an_archive_has_all_a_worker_needs(archive, model_dir):
    with zipfile.ZipFile(archive) as mar:
        names = set(mar.namelist())
        content = yaml.safe_load(mar.read("model-config.yaml"))
        manifest = json.loads(mar.read("MAR-INF/MANIFEST.json"))
        assert {entry.compress_type for entry in mar.infolist()} == {zipfile.ZIP_STORED}
        assert mar.read("model.safetensors") == (model_dir / "model.safetensors").read_bytes()
        package = {
            f"hfserve/{path.relative_to(ROOT / 'handlers/hfserve')}"
            for path in (ROOT / "handlers/hfserve").rglob("*.py")
        }
    wanted = {"config.json", "tokenizer.json", "tokenizer_config.json", "transformer_handler.py", "archive.json"}
    assert wanted | package <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".bin", "source.json"))]
    assert content["batchSize"] == 4
    assert content["maxBatchDelay"] == 1  # from the template
    assert manifest["model"]["modelName"] == "tiny"
    assert manifest["model"]["handler"] == "transformer_handler.py"
    assert manifest["model"]["configFile"] == "model-config.yaml"


def test_it_tells_the_revision_of_its_code(archive):
    with zipfile.ZipFile(archive) as mar:
        assert json.loads(mar.read("archive.json"))["revision"] == code_revision()


def test_the_same_inputs_give_the_same_bytes(archive, tmp_path, model_dir):
    time.sleep(2.1)  # a zip counts in steps of two seconds
    for path in model_dir.iterdir():
        os.utime(path)
    again = build(config(), model_dir, tmp_path)
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(archive.read_bytes()).digest()
    written = again.stat().st_mtime_ns
    assert build(config(), model_dir, tmp_path).stat().st_mtime_ns == written, "the same archive was written again"
    other = build(config(batchSize=5), model_dir, tmp_path)
    assert other.read_bytes() != archive.read_bytes()


def test_nothing_is_left_beside_it(archive):
    assert [path.name for path in archive.parent.iterdir()] == ["tiny.mar"]


LOAD = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("the network was used")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
sys.path.insert(0, sys.argv[1])
from types import SimpleNamespace
from transformer_handler import TransformerHandler
handler = TransformerHandler()
handler.initialize(SimpleNamespace(system_properties={"model_dir": sys.argv[1], "gpu_id": None}, model_name="tiny"))
class Context:
    def get_all_request_header(self, idx): return {"body": {"content-type": "application/json"}}
    def set_response_header(self, idx, key, value): pass
    def set_response_status(self, code, phrase, idx): assert code == 200
print(handler.handle([{"body": {"inputs": "tea"}}], Context())[0])
"""


def test_it_loads_with_the_network_off_and_nothing_but_itself(tmp_path, model_dir):
    eager = {"pt2": {"compile": {"enable": False}}}
    with zipfile.ZipFile(build(config(**eager), model_dir, tmp_path)) as mar:
        mar.extractall(tmp_path / "unpacked")
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")}  # and without HF_HUB_OFFLINE
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "unpacked")], cwd=tmp_path, env=bare, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["label"].startswith("LABEL_")


def test_what_a_worker_would_refuse_is_refused_before(tmp_path, model_dir):
    with pytest.raises(CommandError, match="the model takes 64 tokens"):
        build(config(handler={"mode": "sequence_classification", "max_length": 500}), model_dir, tmp_path)
    bare = tmp_path / "bare"
    models.build("bert").save_pretrained(bare)
    with pytest.raises(CommandError, match="cannot be served as sequence_classification: .*tokenizer"):
        build(config(), bare, tmp_path)


def test_the_shipped_overlays_fit_the_template():
    for overlay in ARTIFACTS.glob("*/model-config.yaml"):
        assert archive_config(overlay).name == overlay.parent.name


def test_a_wrong_overlay_is_told_in_a_sentence(tmp_path):
    with pytest.raises(CommandError, match="There is no .*give MODE="):
        archive_config(tmp_path / "model-config.yaml")
    (tmp_path / "model-config.yaml").write_text("handler: {mode: x, max_lenght: 5}")
    with pytest.raises(CommandError, match="did you mean max_length"):
        archive_config(tmp_path / "model-config.yaml")
    (tmp_path / "model-config.yaml").write_text("- a\n- b")
    with pytest.raises(CommandError, match="must hold sections"):
        archive_config(tmp_path / "model-config.yaml")


def test_merging_goes_section_by_section():
    base = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert merge(base, {"b": {"d": {"f": 4}}, "g": 5}) == {"a": 1, "b": {"c": 2, "d": {"e": 3, "f": 4}}, "g": 5}
    assert base == {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
