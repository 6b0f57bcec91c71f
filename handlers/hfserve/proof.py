"""What an archive claims of itself, and whether it is so.

`archive.json` holds the sha256 of every other file, where the weights come from, and golden inputs with the answers of
the plain model: PyTorch without compiling, in fp32, on a CPU. `goldens.safetensors` holds the numbers behind them. A
worker checks the files before it loads them, and replays the golden inputs on what it really runs: its engine, its
precision, its machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from hfserve.errors import ConfigError, RequestError
from hfserve.tasks.base import Batch, Json, Model, Refused, Task, Tensors

CLAIMS = "archive.json"
NUMBERS = "goldens.safetensors"
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}  # of the largest number behind an answer, or of 1
ROUNDING = 1e-5  # by which scores in two answers that follow from the same numbers may differ
REBUILD = "build it again with `make archive`"


def sha256(path: Path) -> str:
    """Return the hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def libraries() -> dict[str, str]:
    """Return the versions of Python and of what decides a model's answers."""
    names = ("torch", "transformers", "tokenizers", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def read_claims(folder: Path) -> dict[str, Any]:
    """Read what an unpacked archive claims. Raises ConfigError."""
    try:
        claims: dict[str, Any] = json.loads((folder / CLAIMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"The archive has no {CLAIMS} that can be read: {REBUILD}.") from error
    if not isinstance(claims, dict) or {"files", "goldens", "sha256"} - set(claims):
        raise ConfigError(f"{CLAIMS} is not as this version writes it: {REBUILD}.")
    if claims["sha256"] != digest_of(claims):
        raise ConfigError(f"{CLAIMS} is not as it was built: {REBUILD}.")
    return claims


def digest_of(claims: Mapping[str, Any]) -> str:
    """Return the hex digest of all that is claimed, by which a changed claim is told."""
    rest = {key: value for key, value in claims.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_files(folder: Path, claims: Mapping[str, Any]) -> None:
    """Compare the files of an unpacked archive with those that were built. Raises ConfigError naming one that differs.

    The compiled handler is not minded, which Python writes before any of this runs; the handler forbids more of it.
    """
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    present = {path.relative_to(folder).as_posix() for path in found} - {CLAIMS}
    present = {name for name in present if not fnmatchcase(name, "__pycache__/transformer_handler.*.pyc")}
    expected: Mapping[str, str] = claims["files"]
    if added := sorted(present - set(expected)):
        raise ConfigError(f"The archive holds {added[0]}, which was not built into it: {REBUILD}.")
    if lost := sorted(set(expected) - present):
        raise ConfigError(f"The archive lacks {lost[0]}: {REBUILD}.")
    for name, digest in expected.items():
        if sha256(folder / name) != digest:
            raise ConfigError(f"{name} is not as it was built (its sha256 differs): {REBUILD}.")


def make_goldens(task: Task, reference: Model) -> tuple[list[Json], bytes]:
    """Return golden inputs with the reference's answers, and the numbers behind them, in one forward pass.

    Inputs that the model does not take, as it is too small for them, are left out. Raises ConfigError if all are.
    """
    inputs = [given for given in task.goldens() if _taken(task, given)]
    if not inputs:
        raise ConfigError("The model takes none of the golden inputs: set handler.max_length higher.")
    batch = _encode(task, inputs)
    numbers = task.proof(reference, batch)
    answers = task.golden_answers(numbers, batch)
    goldens = [{"input": given, "answer": answer} for given, answer in zip(inputs, answers, strict=True)]
    return goldens, save({name: value.contiguous() for name, value in numbers.items()})


def replay(folder: Path, claims: Mapping[str, Any], task: Task, model: Model, allowed: float, where: str) -> float:
    """Run the golden inputs on `model` and return the largest difference from the reference's numbers.

    allowed: what it may be, relative to the largest number behind an answer, or to 1; where: engine, precision and
    device, for the message. Raises ConfigError naming the input that differs most, and by how much.
    """
    goldens: Sequence[Mapping[str, Json]] = claims["goldens"]
    batch = _encode(task, [golden["input"] for golden in goldens])
    wanted = load((folder / NUMBERS).read_bytes())
    found = task.proof(model, batch)
    if {name: value.shape for name, value in wanted.items()} != {name: found[name].shape for name in wanted}:
        raise ConfigError(f"The golden inputs become other tokens than when the archive was built: {REBUILD}.")
    differences = _differences(wanted, found, batch)
    worst = max(differences, key=lambda item: differences[item])
    if not differences[worst] <= allowed:  # NaN is no agreement
        raise ConfigError(
            f"Golden input {worst + 1} of {len(goldens)}, {json.dumps(goldens[worst]['input'], ensure_ascii=False)}, "
            f"differs by {differences[worst]:.2g} from the plain model where {allowed:g} is allowed, on {where}: "
            "choose another engine or precision, or raise handler.tolerance."
        )
    for golden, answer in zip(goldens, task.golden_answers(wanted, batch), strict=True):
        if not _same(answer, golden["answer"]):
            raise ConfigError(
                f"The answer to golden input {json.dumps(golden['input'], ensure_ascii=False)} is read otherwise than "
                f"when the archive was built: {REBUILD}."
            )
    return differences[worst]


def _taken(task: Task, given: Json) -> bool:
    try:
        _encode(task, [given])
    except (Refused, RequestError):
        return False
    return True


def _encode(task: Task, inputs: Sequence[Json]) -> Batch:
    params = task.trial()
    return task.encode([item for given in inputs for item in task.parse(given, params).values()], params)


def _differences(wanted: Tensors, found: Tensors, batch: Batch) -> dict[int, float]:
    """Return the largest difference of each item, relative to its largest number or to 1."""
    differences: dict[int, float] = dict.fromkeys(batch.owner, 0.0)
    for name, expected in wanted.items():
        for row, item in enumerate(batch.owner):
            scale = max(1.0, float(expected[row].abs().max()))
            gap = float((found[name][row] - expected[row]).abs().max()) / scale
            differences[item] = math.inf if math.isnan(gap) else max(differences[item], gap)
    return differences


def _same(one: Json, other: Json) -> bool:
    """Whether two answers are the same but for the rounding of scores."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=0, abs_tol=ROUNDING)
    return bool(one == other)
