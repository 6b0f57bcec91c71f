"""Build `model_store/<name>.mar` from weights, handler and configuration; the same inputs give the same bytes."""

from __future__ import annotations

import filecmp
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any

import torch
import typer
import yaml
from hfserve.config import Config
from hfserve.engines import build as prepare_engine
from hfserve.engines.eager import Eager
from hfserve.errors import ConfigError
from hfserve.pace import Paced
from hfserve.proof import CLAIMS, NUMBERS, digest_of, libraries, make_goldens
from hfserve.tasks import task_class
from hfserve.tasks.labels import RENAMED

from scripts.configs import ArchiveConfig, archive_config
from scripts.console import ARTIFACTS, MODEL_STORE, ROOT, CommandError, command, console, run
from scripts.download_models import SOURCE_FILE, prepare

app = command()

HANDLERS = ROOT / "handlers"
MANIFEST = "MAR-INF/MANIFEST.json"
HANDLER = "transformer_handler.py"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can tell; archives do not remember when they were built


def build(config: ArchiveConfig, model_dir: Path, store: Path, version: str = "1.0") -> Path:
    """Write the archive of a model folder into a store, replacing an older one at once. Raises CommandError.

    The model is loaded once and run once, on the golden inputs; its files are read and written once.
    """
    check_version(version)
    store.mkdir(parents=True, exist_ok=True)
    # beside the outcome, so that the finished archive is renamed, not copied
    with tempfile.TemporaryDirectory(dir=store, prefix=".building-") as scratch:
        model, code = (Path(scratch) / name for name in ("model", "code"))
        claims = _stage_model(config, model_dir, model)
        _stage_code(config, code)
        small = _archive(config.name, version, code, Path(scratch))
        written = Path(scratch) / "whole.mar"
        with zipfile.ZipFile(small) as mar:
            entries = {name: partial(mar.open, name) for name in mar.namelist() if not name.endswith("/")}
            entries |= {path.name: partial(path.open, "rb") for path in model.iterdir()}
            write_archive(written, entries, claims)
        archive = store / f"{config.name}.mar"
        if not (archive.exists() and filecmp.cmp(written, archive, shallow=False)):
            written.replace(archive)  # the same one stays as it is: a server need not load it again
    return archive


def check_version(version: str) -> None:
    """Raise CommandError for what cannot be told apart, or asked for in an address."""
    if not re.fullmatch(r"\d+([.]\d+)*", version):
        raise CommandError(f"{version!r} is no version: give --version numbers with points between them, such as 2.0.")


def _stage_model(config: ArchiveConfig, model_dir: Path, into: Path) -> dict[str, Any]:
    """Lay out links to the model's files beside what is made of them, and return what the archive claims.

    Refuses now what a worker would refuse later: an unknown mode, a tokenizer, labels or weights that do not load.
    """
    into.mkdir()
    for path in model_dir.iterdir():
        if path.is_file() and path.name != SOURCE_FILE:
            (into / path.name).symlink_to(path.resolve())
    if config.labels:
        (into / RENAMED).unlink(missing_ok=True)
        shutil.copy(config.labels, into / RENAMED)
    try:
        return _claims(config.parsed, model_dir, into)
    except (ConfigError, OSError, ValueError) as error:
        raise CommandError(f"{model_dir} cannot be served as {config.content['handler']['mode']}: {error}") from error


def _claims(config: Config, model_dir: Path, into: Path) -> dict[str, Any]:
    """Run the golden inputs on the plain model, let the engine prepare its files, and return what is so known."""
    cpu = torch.device("cpu")
    task = task_class(config.handler.mode)(into, config.handler)
    plain = replace(config, handler=replace(config.handler, precision="fp32", model_parallel=False))
    reference = Paced(Eager.load(into, task, plain, cpu), config.handler.max_rows)
    goldens, numbers = make_goldens(task, reference)
    prepare_engine(into, task, config, into, torch.device("cuda:0") if torch.cuda.is_available() else cpu)
    (into / NUMBERS).write_bytes(numbers)
    source = model_dir / SOURCE_FILE
    weights = json.loads(source.read_text(encoding="utf-8"))["weights"] if source.exists() else {}
    return {"revision": code_revision(), "weights": weights, "built_with": libraries(), "goldens": goldens}


def _stage_code(config: ArchiveConfig, into: Path) -> None:
    """Lay out what torch-model-archiver packages: the handler's package and the configuration."""
    shutil.copytree(HANDLERS / "hfserve", into / "hfserve", ignore=shutil.ignore_patterns("__pycache__"))
    (into / "model-config.yaml").write_text(yaml.safe_dump(config.content, sort_keys=False), encoding="utf-8")


def _archive(name: str, version: str, contents: Path, scratch: Path) -> Path:
    """Run torch-model-archiver; it deletes $TMPDIR/<name>, so it gets a TMPDIR of its own. Not on the model's files:
    it would copy them twice."""
    tmp = scratch / "tmp"
    tmp.mkdir()
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--archive-format", "zip-store"]
    command += ["--model-name", name, "--version", version, "--export-path", str(scratch)]
    command += ["--handler", str(HANDLERS / HANDLER), "--extra-files", str(contents)]
    command += ["--config-file", str(contents / "model-config.yaml")]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp)}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"torch-model-archiver failed: {done.stderr.strip().splitlines()[-1]}")
    return scratch / f"{name}.mar"


def write_archive(into: Path, entries: Mapping[str, Callable[[], IO[bytes]]], claims: Mapping[str, Any]) -> None:
    """Write entries, sorted, undated and with plain permissions, and last the claims with each one's sha256.

    The same content gives the same bytes, so that an archive can be told from one that was changed anywhere.
    """
    digests = {}
    with zipfile.ZipFile(into, "w", zipfile.ZIP_STORED) as mar:
        for name in sorted(entries):
            with entries[name]() as reader:
                digests[name] = _write_entry(mar, name, _undated(reader) if name == MANIFEST else reader)
        claims = {**claims, "files": digests}
        content = json.dumps({**claims, "sha256": digest_of(claims)}, indent=2, ensure_ascii=False) + "\n"
        _write_entry(mar, CLAIMS, io.BytesIO(content.encode()))


def _write_entry(mar: zipfile.ZipFile, name: str, reader: IO[bytes]) -> str:
    """Copy one entry, and return its sha256."""
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.external_attr = 0o644 << 16
    digest = hashlib.sha256()
    entry.file_size = reader.seek(0, os.SEEK_END)  # tells zipfile whether it needs 64-bit sizes
    reader.seek(0)
    with mar.open(entry, "w") as writer:
        while block := reader.read(1 << 20):
            digest.update(block)
            writer.write(block)
    return digest.hexdigest()


def _undated(manifest: IO[bytes]) -> IO[bytes]:
    """Take the time of building out of a manifest."""
    content = {**json.loads(manifest.read()), "createdOn": "01/01/1980 00:00:00"}
    return io.BytesIO(json.dumps(content, indent=2).encode())


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
