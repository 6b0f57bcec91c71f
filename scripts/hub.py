"""Fetch a model from the Hugging Face Hub: the files serving needs, at one commit, resumed and verified."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from pathlib import Path

import httpx2
import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
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


def resolve(repo: str, revision: str | None) -> tuple[str, list[RepoSibling]]:
    """Return the commit a revision stands for, and the files there with size and hashes. Raises CommandError."""
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=10)
    except RevisionNotFoundError as error:
        raise CommandError(f"{repo} has no revision {revision!r}: give a commit, a tag or a branch of it.") from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise CommandError(
            f"The Hub has no model {repo!r} for you: check the spelling, or log in with `hf auth login` "
            "if it is private or gated."
        ) from error
    except HFValidationError as error:
        raise CommandError(f"{repo!r} is neither a folder here nor a Hub id such as `org/name`.") from error
    except (OfflineModeIsEnabled, HfHubHTTPError, httpx2.TransportError, OSError) as error:
        raise CommandError(f"The Hugging Face Hub cannot be reached ({type(error).__name__}). {WAY_ON}") from error
    return str(info.sha), info.siblings or []


def fetch(
    repo: str, revision: str | None, into: Path, pickle: str | None = None, trust_remote_code: bool = False
) -> str:
    """Download a model's files at one commit into a folder, each verified, and return the commit.

    A download cut off before is resumed from what is in the folder. Raises CommandError.
    """
    commit, siblings = resolve(repo, revision)
    files = {sibling.rfilename: sibling for sibling in siblings}
    for name in choose(list(files), pickle, trust_remote_code, repo):
        try:
            path = hf_hub_download(repo, name, revision=commit, local_dir=into)
        except (HfHubHTTPError, LocalEntryNotFoundError, httpx2.TransportError, OSError) as error:
            raise CommandError(
                f"The download of {name} from {repo} broke off ({type(error).__name__}): run the command again, "
                "it goes on where it stopped."
            ) from error
        _verify(Path(path), files[name])
    return commit


def _verify(path: Path, expected: RepoSibling) -> None:
    """Check a file against the Hub's hash: sha256 for large files, git's blob id for the others."""
    if expected.lfs is not None:
        found, wanted = sha256(path), expected.lfs.sha256
    else:
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        wanted = expected.blob_id or found
    if found != wanted:
        path.unlink()
        raise CommandError(
            f"{path.name} arrived damaged (its hash is not the Hub's) and was deleted: run the command again."
        )


def sha256(path: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def convert_pickle(folder: Path, pickle: str) -> None:
    """Turn a pickled state dict into model.safetensors, with nothing but tensors allowed, and delete the pickle."""
    path = folder / pickle
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds, all meaning the same here
        raise CommandError(
            f"{pickle} holds more than tensors and was not opened: ask its author for safetensors."
        ) from error
    # clone: safetensors refuses tensors that share memory, as tied weights do
    tensors = {name: value.clone().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path.unlink()
    console.print(f"{pickle} converted to model.safetensors ({len(tensors)} tensors).")
