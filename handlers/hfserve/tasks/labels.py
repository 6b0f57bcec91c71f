"""The names of a model's outputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from hfserve.errors import BadRequest, ConfigError, Unprocessable
from hfserve.tasks.inputs import whole_number

RENAMED = "index_to_name.json"


def read_labels(model_dir: Path, model: PretrainedConfig) -> list[str]:
    """Return the label of each output: the model's own, or those of an index_to_name.json in its folder."""
    count = int(model.num_labels or 0)
    names: dict[Any, Any] = dict(model.id2label or {})
    renamed = model_dir / RENAMED
    if renamed.exists():
        names = _renamed(renamed.read_bytes())
        if sorted(names) != list(range(count)):
            shapes = '{"0": "name", ...} or {"label_list": ["name", ...]}'
            raise ConfigError(f"{RENAMED} must name each of the {count} labels: {shapes}.")
    if any(index not in names for index in range(count)):
        raise ConfigError(f"id2label in config.json must name the labels 0 to {count - 1}: mend it.")
    return [str(names[index]) for index in range(count)]


def find_label(labels: Sequence[str], asked: Any) -> int:  # noqa: ANN401  # as it came in a request
    """Return the index of a label asked for by its name or its index. Raises BadRequest, or Unprocessable."""
    if asked in labels:
        return labels.index(asked)
    index = whole_number(asked)
    if type(index) is int and 0 <= index < len(labels):
        return index
    if type(asked) not in (int, str):
        raise BadRequest("Give the name or the index of a label.", "target")
    few = ", ".join(labels[:20]) + (" ..." if len(labels) > 20 else "")
    raise Unprocessable(f"No such label: give a name or an index from 0 to {len(labels) - 1} of {few}.", "target")


def _renamed(content: bytes) -> dict[int, Any]:
    """Read the two shapes of TorchServe's example: an object by index, and a `label_list`, written as a text there."""
    try:
        known = json.loads(content)
    except ValueError:
        return {}
    if not isinstance(known, dict):
        return {}
    listed = known.get("label_list")
    if isinstance(listed, str):
        listed = [name.strip().strip("'\"") for name in listed.strip().strip("[]").split(",")]
    if isinstance(listed, list):
        return dict(enumerate(listed))
    return {int(index): name for index, name in known.items() if index.isdecimal()}
