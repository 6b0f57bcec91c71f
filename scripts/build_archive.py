"""Build `model_store/<name>.mar` from weights, handler and configuration; the same inputs give the same bytes."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import typer
import yaml
from hfserve.config import parse_config
from hfserve.errors import ConfigError
from hfserve.tasks import TASKS

from scripts.configs import ArchiveConfig, archive_config
from scripts.console import ARTIFACTS, MODEL_STORE, ROOT, CommandError, command, console, run
from scripts.download_models import SOURCE_FILE, prepare

app = command()

HANDLERS = ROOT / "handlers"
MANIFEST = "MAR-INF/MANIFEST.json"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can tell; archives do not remember when they were built


def build(config: ArchiveConfig, model_dir: Path, store: Path, version: str = "1.0") -> Path:
    """Write the archive of a model folder into a store, replacing an older one at once. Raises CommandError."""
    _check(config, model_dir)
    store.mkdir(parents=True, exist_ok=True)
    # beside the outcome, so that the finished archive is renamed, not copied
    with tempfile.TemporaryDirectory(dir=store, prefix=".building-") as scratch:
        contents, out, tmp = (Path(scratch) / name for name in ("contents", "out", "tmp"))
        out.mkdir()
        tmp.mkdir()
        _stage(config, model_dir, contents)
        _archive(config.name, version, contents, out, tmp)
        normalise(out / f"{config.name}.mar", out / "normal.mar")
        archive = store / f"{config.name}.mar"
        if not (archive.exists() and filecmp.cmp(out / "normal.mar", archive, shallow=False)):
            (out / "normal.mar").replace(archive)  # the same one stays as it is: a server need not load it again
    return archive


def _check(config: ArchiveConfig, model_dir: Path) -> None:
    """Refuse now what a worker would refuse later: an unknown mode, a tokenizer or labels that do not load."""
    handler = parse_config(config.content).handler
    if handler.mode not in TASKS:
        raise CommandError(f"handler.mode {handler.mode!r} is unknown: choose one of {', '.join(TASKS)}.")
    try:
        TASKS[handler.mode](model_dir, handler)
    except (ConfigError, OSError, ValueError) as error:
        raise CommandError(f"{model_dir} cannot be served as {handler.mode}: {error}") from error


def _stage(config: ArchiveConfig, model_dir: Path, contents: Path) -> None:
    """Lay out what the archive holds: the model's files, the handler's package, configuration and provenance."""
    shutil.copytree(model_dir, contents, ignore=shutil.ignore_patterns(SOURCE_FILE))
    shutil.copytree(HANDLERS / "hfserve", contents / "hfserve", ignore=shutil.ignore_patterns("__pycache__"))
    (contents / "model-config.yaml").write_text(yaml.safe_dump(config.content, sort_keys=False), encoding="utf-8")
    source = model_dir / SOURCE_FILE
    weights = json.loads(source.read_text(encoding="utf-8"))["weights"] if source.exists() else {}
    provenance = {"revision": code_revision(), "weights": weights}
    (contents / "archive.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def _archive(name: str, version: str, contents: Path, out: Path, tmp: Path) -> None:
    """Run torch-model-archiver; it deletes $TMPDIR/<name>, so it gets a TMPDIR of its own."""
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--archive-format", "zip-store"]
    command += ["--model-name", name, "--version", version, "--export-path", str(out)]
    command += ["--handler", str(HANDLERS / "transformer_handler.py"), "--extra-files", str(contents)]
    command += ["--config-file", str(contents / "model-config.yaml")]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp)}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"torch-model-archiver failed: {done.stderr.strip().splitlines()[-1]}")


def normalise(archive: Path, into: Path) -> None:
    """Write an archive again with its entries sorted, undated and with plain permissions."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(into, "w", zipfile.ZIP_STORED) as new:
        for name in sorted(old.namelist()):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            if name == MANIFEST:
                manifest = {**json.loads(old.read(name)), "createdOn": "01/01/1980 00:00:00"}
                new.writestr(entry, json.dumps(manifest, indent=2))
                continue
            entry.file_size = old.getinfo(name).file_size  # tells zipfile whether 64-bit sizes are needed
            with old.open(name) as reader, new.open(entry, "w") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)


def code_revision() -> str:
    """Return the commit the code is at, with `+changes` where handlers/ differs from it; `unknown` outside of git."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return "unknown"
    return commit + ("+changes" if _git("status", "--porcelain", "--", "handlers") else "")


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


@app.command()
def main(
    config: Annotated[
        Path | None, typer.Option(help="A model-config.yaml; its folder's name is the archive's.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="Short for --config artifacts/MODE/model-config.yaml.")
    ] = "sequence_classification",
    model: Annotated[
        str | None, typer.Option(help="A Hub id, a folder, or `starter`, in place of handler.model_name.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch, in place of handler.revision.")] = None,
    store: Annotated[Path, typer.Option(help="Where the archive goes.")] = MODEL_STORE,
    version: Annotated[str, typer.Option(help="The archive's version, by which TorchServe tells two apart.")] = "1.0",
) -> None:
    """Build an archive that TorchServe can serve with the network off; weights that are missing are prepared first.

    Examples:

      python -m scripts.build_archive

      python -m scripts.build_archive --model ./my-model

      python -m scripts.build_archive --config artifacts/reviews/model-config.yaml --version 2.0
    """
    wanted = archive_config(config or ARTIFACTS / mode / "model-config.yaml", model, revision)
    model_dir = prepare(wanted.name, wanted.content["handler"])
    with console.status(f"Building {wanted.name}.mar"):
        archive = build(wanted, model_dir, store, version)
    console.print(f"{os.path.relpath(archive)} is built ({archive.stat().st_size / 1e6:.1f} MB).")


if __name__ == "__main__":
    run(app)
