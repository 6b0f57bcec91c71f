"""Fetch a model from the Hugging Face Hub: the files serving needs, at one commit, resumed and verified."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import torch
from hfserve.proof import sha256
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but not in an __all__
from safetensors.torch import save_file

from scripts.console import CommandError, console

# What serving reads: configuration, tokenizer, labels, licence. Weights are chosen apart.
SUPPORT_FILES = (
    "config.json", "generation_config.json", "index_to_name.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "bpe.codes",
    "preprocessor_config.json", "chat_template.*", "LICENSE*", "README.md",
)  # fmt: skip
SAFE_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
PICKLE_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CODE = ("*.py",)

UNKNOWN = "unknown"  # the licence of a model whose card names none

NOTES = ".cache"  # in a folder that is being filled: what has arrived of each file, until all is there

WAY_ON = (
    "Without the Hub, set handler.model_name to a folder saved with save_pretrained, or to `starter` for the small "
    "model that comes with this project."
)


def matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    """Return the names at the top of a repository or folder that match any pattern."""
    return [name for name in names if "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)]


def choose(names: list[str], pickle: str | None, trust_remote_code: bool, source: str) -> list[str]:
    """Return which files of a model to take. Raises CommandError where its weights are pickles nobody asked for."""
    weights = [pickle] if pickle else matching(names, SAFE_WEIGHTS)
    if pickle and pickle not in names:
        raise CommandError(f"{source} has no file {pickle}: name one of {', '.join(names)}.")
    if not weights:
        found = ", ".join(matching(names, PICKLE_WEIGHTS)) or "no weights at all"
        raise CommandError(
            f"{source} has no model.safetensors, only {found}. A pickle can run code when it is opened; "
            "to convert one you trust, name it: --pickle FILE."
        )
    return matching(names, SUPPORT_FILES) + weights + (matching(names, CODE) if trust_remote_code else [])


class Revision(NamedTuple):
    """What the Hub tells of a model at a revision: its commit, its licence, its files with size and hashes."""

    commit: str
    licence: str
    files: list[RepoSibling]


def resolve(repo: str, revision: str | None) -> Revision:
    """Ask the Hub for a model. Raises CommandError."""
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=10)
    except RevisionNotFoundError as error:
        raise CommandError(f"{repo} has no revision {revision!r}: give a commit, a tag or a branch of it.") from error
    except RepositoryNotFoundError as error:
        raise _no_access(repo) from error
    except HFValidationError as error:
        raise CommandError(f"{repo!r} is neither a folder here nor a Hub id such as `org/name`.") from error
    # ValueError: an answer that is no JSON, as from a network that asks for a login first
    except (OfflineModeIsEnabled, HfHubHTTPError, httpx2.TransportError, OSError, ValueError) as error:
        raise CommandError(f"The Hugging Face Hub cannot be reached ({type(error).__name__}). {WAY_ON}") from error
    tagged = [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]
    card = info.card_data.to_dict() if info.card_data else {}  # type: ignore[no-untyped-call]
    return Revision(str(info.sha), licence({"license": tagged, **card}), info.siblings or [])


def licence(card: Mapping[str, Any]) -> str:
    """Return the licence that the front matter of a model card names, one that is none of the usual by its own name."""
    named = card.get("license")
    if named == "other":
        named = card.get("license_name") or named
    return ", ".join(map(str, named if isinstance(named, list) else [named or UNKNOWN])) or UNKNOWN


def _no_access(repo: str) -> CommandError:
    return CommandError(
        f"The Hub has no model {repo!r} for you: check the spelling, or log in with `hf auth login` "
        "if it is private or gated."
    )


def fetch(
    repo: str, revision: str | None, into: Path, pickle: str | None = None, trust_remote_code: bool = False
) -> Revision:
    """Download a model's files at one commit into a folder, each verified, and return what the Hub tells of it.

    A download cut off before is resumed from what is in the folder. Raises CommandError.
    """
    found = resolve(repo, revision)
    files = {sibling.rfilename: sibling for sibling in found.files}
    names = choose(list(files), pickle, trust_remote_code, repo)
    leave_only(into, names)
    for name in names:
        if not ((into / name).exists() and _is_whole(into / name, files[name])):
            _download(repo, found.commit, files[name], into)
    return found


def leave_only(folder: Path, names: list[str]) -> None:
    """Delete other files, as a run left them that broke off before the branch moved or another pickle was named."""
    for path in folder.glob("*"):
        if path.is_file() and path.name not in names:
            path.unlink()


def _download(repo: str, commit: str, file: RepoSibling, into: Path) -> None:
    """Download one file, verified, going on where an earlier download stopped. Raises CommandError."""
    name = file.rfilename
    # Named by its hash, so that a part from another commit is never resumed. Not hf_hub_download: it deletes the part.
    part = into / NOTES / f"{_hash(file) or commit}.{Path(name).name}"
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("ab") as writer:
            if file.size is None or writer.tell() < file.size:
                url, headers = hf_hub_url(repo, name, revision=commit), build_hf_headers()
                http_get(url, writer, resume_size=writer.tell(), headers=headers, displayed_filename=name)
    except RepositoryNotFoundError as error:  # of a gated model everybody may read what it has, but not the files
        raise _no_access(repo) from error
    except (HfHubHTTPError, httpx2.TransportError, OSError) as error:
        raise CommandError(
            f"The download of {name} from {repo} broke off ({type(error).__name__}): run the command again, "
            "it goes on where it stopped."
        ) from error
    if not _is_whole(part, file):
        part.unlink()
        raise CommandError(
            f"{name} arrived damaged (its hash is not the Hub's) and was deleted: run the command again."
        )
    (into / name).parent.mkdir(parents=True, exist_ok=True)
    part.replace(into / name)


def _hash(file: RepoSibling) -> str | None:
    """Return the Hub's hash of a file: sha256 for large files, git's blob id for the others."""
    return file.lfs.sha256 if file.lfs else file.blob_id


def _is_whole(path: Path, file: RepoSibling) -> bool:
    if file.lfs:
        return sha256(path) == _hash(file)
    content = path.read_bytes()
    blob_id = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return blob_id == (_hash(file) or blob_id)


def convert_pickle(folder: Path, pickle: str) -> None:
    """Turn a pickled state dict into model.safetensors, with nothing but tensors allowed, and delete the pickle."""
    path = folder / pickle
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds, all meaning the same here
        raise CommandError(
            f"{pickle} holds more than tensors and was not opened: ask its author for safetensors."
        ) from error
    named = state.items() if isinstance(state, dict) else ()
    # clone: safetensors refuses tensors that share memory, as tied weights do
    tensors = {name: value.clone().contiguous() for name, value in named if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CommandError(
            f"{pickle} is no state dict, tensors by their names: name the one that save_pretrained wrote."
        )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path.unlink()
    console.print(f"{pickle} converted to model.safetensors ({len(tensors)} tensors).")
