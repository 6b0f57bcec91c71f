"""Prepare a model's weights in `models/<name>/`: from the Hugging Face Hub, from a folder, or the starter."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import rich.progress
import torch
import transformers
import typer
import yaml
from hfserve.proof import sha256
from hfserve.tasks import TASKS
from huggingface_hub import metadata_load
from transformers import CONFIG_MAPPING

from scripts import hub, starter
from scripts.configs import archive_config
from scripts.console import ARTIFACTS, MODELS, CommandError, command, console, run

app = command()

SOURCE_FILE = "source.json"  # in a prepared folder: where it came from; what it says is also written into the archive
INDEX = "model.safetensors.index.json"  # says which file of several holds which weight
STARTER = "starter"


def prepare(name: str, handler: dict[str, Any], pickle: str | None = None, models: Path = MODELS) -> Path:
    """Make sure `<models>/<name>/` holds the model that a `handler:` section names, and return the folder.

    It is built beside and renamed when whole, so that two models never mix. Raises CommandError.
    """
    source, trust = handler.get("model_name") or "", handler.get("trust_remote_code", False)
    folder, partial = models / name, models / f".{name}.partial"
    asked = {
        "mode": handler["mode"],
        "source": source,
        "revision": handler.get("revision"),
        "trust_remote_code": trust,
        "num_labels": handler.get("num_labels"),
        "stamp": _stamp(source, handler["mode"]),
    }
    if _asked_before(folder) == asked:
        console.print(f"{os.path.relpath(folder)} is ready.")
        return folder
    if _asked_before(partial / hub.NOTES) != asked:  # else: a download cut off, to be resumed
        shutil.rmtree(partial, ignore_errors=True)
    (partial / hub.NOTES).mkdir(parents=True, exist_ok=True)
    _note(partial / hub.NOTES, {"asked": asked})
    facts = _fill(partial, source, handler, pickle)
    if pickle:
        hub.convert_pickle(partial, pickle)
    _check(partial, trust)
    facts |= _add_head(partial, source, handler)
    weights = {path.name: sha256(path) for path in sorted(partial.glob("*.safetensors"))}
    _note(partial, {"asked": asked, "weights": {**facts, "sha256": weights}})
    shutil.rmtree(partial / hub.NOTES)
    _replace(folder, partial)
    console.print(f"{os.path.relpath(folder)} is ready.")
    return folder


def _fill(into: Path, source: str, handler: dict[str, Any], pickle: str | None) -> dict[str, str]:
    """Put a source's files into a folder, and return what the archive tells of the source."""
    trust = handler.get("trust_remote_code", False)
    if source == STARTER:
        return {"source": STARTER, **starter.build(handler["mode"], into)}
    if Path(source).is_dir():
        _copy(Path(source), into, pickle, trust)
        return {"source": f"folder {Path(source).resolve().name}", "licence": _licence(Path(source))}
    if source.startswith((".", "/", "~")) or not source:
        raise CommandError(f"There is no folder {source!r}: set handler.model_name to a folder, a Hub id or `starter`.")
    commit, licence, _ = hub.fetch(source, handler.get("revision"), into, pickle, trust)
    if commit != handler.get("revision"):
        console.print(f"{source} is at commit {commit}; pin it with `revision: {commit}` under `handler:`.")
    return {"source": source, "revision": commit, "licence": licence}


def _licence(folder: Path) -> str:
    """Return the licence that a folder's model card names."""
    card = folder / "README.md"
    try:
        return hub.licence((metadata_load(card) if card.is_file() else None) or {})
    except (ValueError, yaml.YAMLError):  # front matter that is no YAML, or none of `key: value`
        return hub.UNKNOWN


def _copy(source: Path, into: Path, pickle: str | None, trust_remote_code: bool) -> None:
    names = sorted(path.name for path in source.iterdir() if path.is_file())
    chosen = hub.choose(names, pickle, trust_remote_code, str(source))
    hub.leave_only(into, chosen)
    for name in chosen:
        progress = rich.progress.open(source / name, "rb", description=name, console=console)
        with progress as reader, (into / name).open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)


def _check(folder: Path, trust_remote_code: bool) -> None:
    """Refuse what transformers could not load, before it replaces what works."""
    kind = _read(folder / "config.json").get("model_type")
    if kind is None:
        raise CommandError("The model has no config.json with a model_type: it was not saved with save_pretrained.")
    if kind not in CONFIG_MAPPING and not trust_remote_code:
        raise CommandError(
            f"transformers has no architecture {kind!r}: it needs the model's own code, which runs only with "
            "`trust_remote_code: true` under `handler:`."
        )
    if (folder / "model.safetensors").exists():
        return
    shards = set(_read(folder / INDEX).get("weight_map", {}).values()) or {INDEX}
    if missing := sorted(shard for shard in shards if not (folder / shard).exists()):
        raise CommandError(f"The model's weights are not whole, {', '.join(missing)} is missing: get it again.")


def _add_head(folder: Path, source: str, handler: dict[str, Any]) -> dict[str, str]:
    """Give a model that was trained for no classification a head, where `num_labels` says for how many labels.

    So did TorchServe's example, whose bert-base-uncased has none. Returns what the archive tells of it.
    """
    task, count = TASKS.get(handler["mode"]), handler.get("num_labels")
    trained = _read(folder / "config.json").get("architectures") or ["Classification, for all we know"]
    if not (count and task and task.auto_class.endswith("Classification")):
        return {}
    if any("Classification" in architecture for architecture in trained):
        return {}
    torch.manual_seed(0)  # the same inputs build the same archive
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it would list the weights that it draws
    model = getattr(transformers, task.auto_class).from_pretrained(
        folder, num_labels=count, local_files_only=True, trust_remote_code=handler.get("trust_remote_code", False)
    )
    whole = folder / hub.NOTES / "whole"  # beside: what is replaced may still be read
    model.save_pretrained(whole)
    del model
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink(missing_ok=True)
    for path in whole.iterdir():
        path.replace(folder / path.name)
    console.print(
        f"{source} was not trained for {handler['mode']}: `num_labels: {count}` gives it a head with random weights, "
        "and its answers mean nothing until it is trained.",
        soft_wrap=True,
    )
    return {"head": f"random weights for {count} labels, not trained"}


def _read(path: Path) -> dict[str, Any]:
    """Return what a JSON file of a model holds, and nothing where there is none. Raises CommandError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise CommandError(f"The model's {path.name} is not valid JSON ({error}): mend it or get it again.") from error
    return content if isinstance(content, dict) else {}


def _stamp(source: str, mode: str) -> str:
    """What changes when a source on this machine changes: size and time of a folder's files, the starter's delta."""
    if source == STARTER:
        return sha256(starter.weights_path(mode))
    if not Path(source).is_dir():
        return ""
    files = sorted(path for path in Path(source).iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _asked_before(folder: Path) -> dict[str, Any] | None:
    path = folder / SOURCE_FILE
    return json.loads(path.read_text(encoding="utf-8"))["asked"] if path.exists() else None


def _note(folder: Path, content: dict[str, Any]) -> None:
    (folder / SOURCE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _replace(folder: Path, partial: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@app.command()
def main(
    config: Annotated[Path | None, typer.Option(help="The model-config.yaml that names the model.")] = None,
    mode: Annotated[
        str, typer.Option(help="Short for --config artifacts/MODE/model-config.yaml.")
    ] = "sequence_classification",
    model: Annotated[
        str | None, typer.Option(help="A Hub id, a folder, or `starter`, in place of handler.model_name.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch, in place of handler.revision.")] = None,
    pickle: Annotated[
        str | None, typer.Option(help="Convert this pickled weight file of the model to safetensors.")
    ] = None,
    models: Annotated[Path, typer.Option(help="Where the prepared weights go, a folder a model.")] = MODELS,
) -> None:
    """Prepare the weights of a model in models/, verified, so that an archive can be built from them.

    Examples:

      python -m scripts.download_models

      python -m scripts.download_models --model distilbert/distilbert-base-uncased-finetuned-sst-2-english

      python -m scripts.download_models --model ./my-model

      python -m scripts.download_models --config artifacts/reviews/model-config.yaml
    """
    wanted = archive_config(config or ARTIFACTS / mode / "model-config.yaml", model, revision)
    prepare(wanted.name, wanted.content["handler"], pickle, models)


if __name__ == "__main__":
    run(app)
