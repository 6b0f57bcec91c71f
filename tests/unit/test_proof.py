"""What an archive claims, and each way in which it may not be so."""

import json
import os
import shutil
import zipfile

import pytest
import torch
from hfserve.config import read_config
from hfserve.engines.eager import Eager
from hfserve.errors import ConfigError
from hfserve.forms import Call
from hfserve.pipeline import Pipeline
from hfserve.proof import _same as same
from hfserve.proof import check_files, read_claims, sha256
from safetensors.torch import load_file, save_file

from tests import models
from tests.serving import archive

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=models.HEADS)
def built(request, tmp_path_factory):
    """An unpacked archive of each mode."""
    folder = tmp_path_factory.mktemp(request.param)
    model = models.save(folder / "model", head=request.param)
    mar = archive(folder / "store", request.param, model, {"handler": {"mode": request.param}})
    with zipfile.ZipFile(mar) as opened:
        opened.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture
def unpacked(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copy")


def load(folder):
    return Pipeline.load(folder, read_config(folder / "model-config.yaml"), CPU)


def test_an_archive_proves_itself(built):
    claims = read_claims(built)
    check_files(built, claims)
    assert load(built).prove(built, claims) < 1e-5
    assert len(claims["goldens"]) >= 4  # a model of 64 tokens does not take the long ones
    assert claims["built_with"]["torch"] == torch.__version__
    assert claims["files"]["model.safetensors"] == sha256(built / "model.safetensors")
    assert {"transformer_handler.py", "hfserve/proof.py", "MAR-INF/MANIFEST.json"} <= set(claims["files"])


def test_the_answers_are_the_plain_models(built):
    """Read by the pipeline itself, one by one, without the batch they were made in."""
    pipeline = load(built)
    parameters = {"max_new_tokens": 1} if pipeline.task.needs == "generate" else {}
    for golden in read_claims(built)["goldens"]:
        (answer,) = pipeline.answer([Call(golden["input"], parameters=parameters)])
        assert same(answer.results[0], golden["answer"])


def test_a_flipped_byte_is_refused_in_every_file(unpacked):
    claims = read_claims(unpacked)
    for name in ("model.safetensors", "hfserve/wire.py", "model-config.yaml", "goldens.safetensors", "tokenizer.json"):
        content = (unpacked / name).read_bytes()
        at = len(content) // 2
        (unpacked / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ConfigError, match=f"{name} is not as it was built .*make archive"):
            check_files(unpacked, claims)
        (unpacked / name).write_bytes(content)
    check_files(unpacked, claims)


def test_a_changed_claim_is_refused(unpacked):
    path = unpacked / "archive.json"
    claims = json.loads(path.read_text())
    for key in claims:
        changed = {**claims, key: "other"}
        path.write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=r"archive.json is not as it was built"):
            read_claims(unpacked)
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ConfigError, match=r"no archive.json that can be read"):
        read_claims(unpacked)
    path.unlink()
    with pytest.raises(ConfigError, match=r"no archive.json that can be read"):
        read_claims(unpacked)


def test_an_added_or_a_lost_file_is_refused(unpacked):
    claims = read_claims(unpacked)
    (unpacked / "extra.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match=r"holds extra.pkl, which was not built into it"):
        check_files(unpacked, claims)
    (unpacked / "extra.pkl").unlink()
    os.symlink("/etc/hostname", unpacked / "hfserve" / "link.py")
    with pytest.raises(ConfigError, match=r"holds hfserve/link.py"):
        check_files(unpacked, claims)
    (unpacked / "hfserve" / "link.py").unlink()
    (unpacked / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"lacks config.json"):
        check_files(unpacked, claims)


def test_only_the_handler_may_leave_compiled_code(unpacked):
    """Any other would be run in the place of the code that was built."""
    (unpacked / "__pycache__").mkdir()
    (unpacked / "__pycache__" / "transformer_handler.cpython-311.pyc").write_bytes(b"x")
    check_files(unpacked, read_claims(unpacked))
    for name in ("hfserve/__pycache__/wire.cpython-311.pyc", "my__pycache__.bin", "__pycache__/any.pkl"):
        (unpacked / name).parent.mkdir(exist_ok=True)
        (unpacked / name).write_bytes(b"x")
        with pytest.raises(ConfigError, match=f"holds {name}"):
            check_files(unpacked, read_claims(unpacked))
        (unpacked / name).unlink()
    os.symlink(unpacked / "hfserve", unpacked / "linked")
    with pytest.raises(ConfigError, match="holds linked"):
        check_files(unpacked, read_claims(unpacked))


def test_another_model_is_told_from_the_one_that_was_built(unpacked):
    """Weights a little off, as a bad conversion would leave them: the hash aside, the golden inputs tell."""
    weights = load_file(unpacked / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    save_file({**weights, name: weights[name].roll(1)}, unpacked / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"Golden input \d+ of \d+, .* differs by .* where 0.001 is allowed, on"):
        load(unpacked).prove(unpacked, read_claims(unpacked))


def test_an_engine_that_errs_is_refused(built, monkeypatch):
    class Off(Eager):
        def run(self, tensors):
            return {name: value + 0.01 for name, value in super().run(tensors).items()}

    monkeypatch.setattr("hfserve.pipeline.engine_class", lambda name: Off)
    with pytest.raises(ConfigError, match=r"differs by .* on engine eager, fp32, cpu: choose another engine"):
        load(built).prove(built, read_claims(built))


def test_a_number_that_is_none_is_refused(built, monkeypatch):
    class Lost(Eager):
        def run(self, tensors):
            return {name: value * float("nan") for name, value in super().run(tensors).items()}

    monkeypatch.setattr("hfserve.pipeline.engine_class", lambda name: Lost)
    monkeypatch.setattr("hfserve.pipeline.Pipeline.warm_up", lambda self: None)  # which may fail of it before
    with pytest.raises(ConfigError, match=r"differs by inf"):
        load(built).prove(built, read_claims(built))
