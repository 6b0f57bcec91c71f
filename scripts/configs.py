"""The configuration of an archive: the template model-config.yaml with an overlay's differences put over it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hfserve.config import Config, parse_config
from hfserve.errors import ConfigError
from hfserve.tasks.labels import RENAMED

from scripts.console import ROOT, CommandError


@dataclass(frozen=True)
class ArchiveConfig:
    """An archive's name, which is its overlay's folder's, and the whole content of its model-config.yaml.

    labels: an index_to_name.json beside the overlay, which gives the model's labels other names.
    """

    name: str
    content: dict[str, Any]
    labels: Path | None = None

    @cached_property
    def parsed(self) -> Config:
        """What a worker makes of it; read once, as reading warns of keys that mean little. Raises ConfigError."""
        return parse_config(self.content)


def archive_config(overlay: Path, model: str | None = None, revision: str | None = None) -> ArchiveConfig:
    """Merge an overlay into the template and check the outcome as a worker would. Raises CommandError.

    `model` and `revision` take the place of handler.model_name and handler.revision.
    """
    if not overlay.is_file():
        raise CommandError(
            f"There is no {overlay}: give MODE=<a folder of artifacts/> or CONFIG=<a model-config.yaml>."
        )
    name, own = overlay.resolve().parent.name, _read(overlay)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise CommandError(f"An archive cannot be named {name!r}: name the folder with letters, digits, _, - and dots.")
    if not isinstance(own.get("handler"), dict) or "mode" not in own["handler"]:
        raise CommandError(f"{overlay} must hold a section `handler:` with `mode:` and `model_name:`.")
    content = merge(_read(ROOT / "model-config.yaml"), own)
    chosen = {"model_name": model, "revision": revision} if model else {"revision": revision} if revision else {}
    content = merge(content, {"handler": chosen})
    labels = overlay.parent / RENAMED
    config = ArchiveConfig(name, content, labels if labels.is_file() else None)
    try:
        config.parsed  # noqa: B018  # for what it raises
    except ConfigError as error:
        raise CommandError(f"{overlay}: {error}") from error
    return config


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Put `over` over `base`, section by section; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both else value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise CommandError(f"{path} must hold sections such as `handler:`.")
    return content
