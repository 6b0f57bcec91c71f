"""Check an archive without a server: its form, its files, and its golden inputs on this machine."""

from __future__ import annotations

import filecmp
import os
import stat
import tempfile
import zipfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import torch
import typer
from hfserve.config import read_config
from hfserve.errors import ConfigError
from hfserve.pipeline import Pipeline
from hfserve.proof import CLAIMS, check_files, read_claims
from safetensors import SafetensorError

from scripts.build_archive import HANDLER, MANIFEST, write_archive
from scripts.console import MODEL_STORE, CommandError, command, console, run

app = command()


def verify(archive: Path) -> tuple[dict[str, Any], Pipeline, float]:
    """Return an archive's claims, its model as it runs here, and how far it is from the plain model's answers.

    Raises CommandError with what is wrong. Code that stands in the archive is not run, but for that of a model whose
    configuration says `trust_remote_code: true`.
    """
    with tempfile.TemporaryDirectory() as folder:
        unpacked, again = Path(folder) / "unpacked", Path(folder) / "again.mar"
        try:
            unpack(archive, unpacked)
            claims = read_claims(unpacked)
            check_files(unpacked, claims)
            for name in (MANIFEST, HANDLER):
                if name not in claims["files"]:
                    raise ConfigError(f"it has no {name}: build it again with `make archive`.")
            check_bytes(archive, claims, again)
            device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
            pipeline = Pipeline.load(unpacked, read_config(unpacked / "model-config.yaml"), device)
            return claims, pipeline, pipeline.prove(unpacked, claims)
        except ConfigError as error:
            raise CommandError(f"{os.path.relpath(archive)} is refused: {error}") from error
        except (OSError, ValueError, LookupError, SafetensorError) as error:  # hashes right, and the content is not
            raise CommandError(
                f"{os.path.relpath(archive)} is refused: it does not load ({type(error).__name__}: {error}): build it "
                "again with `make archive`."
            ) from error


def unpack(archive: Path, into: Path) -> None:
    """Unpack an archive, unless it is none or an entry points outside of it. Raises CommandError."""
    try:
        with zipfile.ZipFile(archive) as mar:
            for entry in mar.infolist():
                if told := _odd(entry):
                    raise CommandError(f"{os.path.relpath(archive)} is refused: its entry {entry.filename!r} {told}.")
            mar.extractall(into)
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise CommandError(
            f"{archive} is no archive that can be read ({error}): build it with `make archive`."
        ) from error


def _odd(entry: zipfile.ZipInfo) -> str:
    """Say what is wrong with where an entry would go, or with what it is; "" if nothing is."""
    path = PurePosixPath(entry.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename:
        return "points outside of the archive"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link"
    return ""


def check_bytes(archive: Path, claims: dict[str, Any], again: Path) -> None:
    """Write the archive again from its content and compare: what stands between the files cannot differ either."""
    rest = {key: value for key, value in claims.items() if key not in ("files", "sha256")}
    with zipfile.ZipFile(archive) as mar:
        names = mar.namelist()
        if len(set(names)) < len(names):
            raise ConfigError("it holds two entries of one name: build it again with `make archive`.")
        write_archive(again, {name: partial(mar.open, name) for name in names if name != CLAIMS}, rest)
    if not filecmp.cmp(archive, again, shallow=False):
        raise ConfigError("its bytes are not as they were built: build it again with `make archive`.")


@app.command()
def main(
    archive: Annotated[Path, typer.Argument(help="The .mar file.")] = MODEL_STORE / "sequence_classification.mar",
) -> None:
    """Check an archive: every byte, the sha256 of its files, and its golden inputs on this machine.

    Example: python -m scripts.verify model_store/sequence_classification.mar
    """
    with console.status(f"Checking {archive.name}, and loading it"):
        claims, pipeline, difference = verify(archive)
    about = pipeline.describe()
    console.print(
        f"{os.path.relpath(archive)} is as it was built: {len(claims['files'])} files. Its {len(claims['goldens'])} "
        f"golden inputs differ by {difference:.1g} at most from the plain model's answers, on engine "
        f"{about['engine']}, {about['precision']}, {about['device']}.",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run(app)
