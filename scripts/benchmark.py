"""Measure on this machine what the project promises, as ratios of things timed in one run."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from hfserve.explain import FIRST_STEPS
from hfserve.forms import Call
from hfserve.pipeline import Pipeline
from hfserve.tasks import TASKS
from rich.progress import track
from rich.table import Table

from scripts.build_archive import build
from scripts.configs import ArchiveConfig, archive_config, merge
from scripts.console import ARTIFACTS, command, console, run
from scripts.download_models import prepare

app = command()

EXPLAINED = 16

# What anybody's own script does: the same imports, from_pretrained, one forward pass.
PLAIN = """
import sys, torch, transformers
folder, auto_class = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(folder).eval()
tokens = transformers.AutoTokenizer.from_pretrained(folder)("The staff were friendly.", return_tensors="pt")
with torch.inference_mode():
    model(**tokens)
"""

# What a worker of TorchServe does until it is READY, but for TorchServe's own start: hashes, warm-up, golden inputs.
READY = """
import sys
folder, auto_class = sys.argv[1:]
sys.path.insert(0, folder)
from types import SimpleNamespace
from transformer_handler import TransformerHandler
properties = {"model_dir": folder, "gpu_id": None}
TransformerHandler().initialize(SimpleNamespace(system_properties=properties, model_name="m"))
"""

# What building an archive cannot do without: the model loaded once and run once, on the golden inputs, one plain copy.
PARTS = """
import json, shutil, sys, tempfile, torch, transformers
folder, auto_class = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(folder).eval()
goldens = [golden["input"] for golden in json.load(open(folder + "/../unpacked/archive.json"))["goldens"]]
texts = [tuple(given.values()) if isinstance(given, dict) else given for given in goldens]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
tokens = tokenizer(texts, padding=True, return_tensors="pt")
with torch.inference_mode():
    model(**tokens)
with tempfile.TemporaryDirectory(dir=folder + "/..") as into:
    shutil.copytree(folder, into + "/copy")
"""


def seconds(*words: str) -> float:
    """Return how long a process takes. Raises CalledProcessError."""
    start = time.monotonic()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.monotonic() - start


def compare(name: str, ours: Callable[[], float], other: Callable[[], float], repeats: int) -> list[str]:
    """Time two things in turn, so that what else runs here falls on both, and return a line of the table."""
    pairs = [(ours(), other()) for _ in track(range(repeats), name, console=console)]
    ratios = sorted(one / two for one, two in pairs)
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    return [name, f"{first:.1f} s", f"{second:.1f} s", f"{statistics.median(ratios):.2f}", spread]


def explanations(pipeline: Pipeline, repeats: int) -> list[str]:
    """Compare explaining in one batch with explaining one by one, and return a line of the table."""
    goldens = pipeline.task.goldens()
    calls = [Call(goldens[i % len(goldens)], parameters={"n_steps": FIRST_STEPS}) for i in range(EXPLAINED)]
    pipeline.explain(calls[:1])  # the first time is slower than all others
    return compare(
        f"{EXPLAINED} explanations in a batch, beside one by one",
        lambda: timed(lambda: pipeline.explain(calls)),
        lambda: timed(lambda: [pipeline.explain([call]) for call in calls]),
        repeats,
    )


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds some work takes."""
    start = time.monotonic()
    work()
    return time.monotonic() - start


@app.command()
def main(
    mode: Annotated[str, typer.Option(help="The mode whose archive to measure.")] = "sequence_classification",
    repeats: Annotated[int, typer.Option(help="How often each is timed.")] = 5,
) -> None:
    """Measure how long an archive takes to build and to be READY, beside what a plain script of your own takes.

    And what explanations gain by sharing passes, on the CPU: little, where one alone keeps it busy.

    Example: python -m scripts.benchmark --mode token_classification --repeats 7
    """
    overlay = ARTIFACTS / mode / "model-config.yaml"
    eager = {"pt2": {"compile": {"enable": False}}}
    wanted = archive_config(overlay)
    config = ArchiveConfig(wanted.name, merge(wanted.content, eager), wanted.labels)
    model_dir = prepare(config.name, config.content["handler"])
    with tempfile.TemporaryDirectory(dir=model_dir.parent) as scratch:
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(build(config, model_dir, Path(scratch))) as mar:
            mar.extractall(unpacked)
        plain = Path(scratch) / "plain"
        shutil.copytree(model_dir, plain)
        auto_class = TASKS[config.parsed.handler.mode].auto_class
        words = ["-m", "scripts.build_archive", "--config", str(overlay), "--store", scratch]
        lines = [
            compare(
                "until READY (eager), beside a plain script",
                lambda: seconds("-c", READY, str(unpacked), auto_class),
                lambda: seconds("-c", PLAIN, str(plain), auto_class),
                repeats,
            ),
            compare(
                "building, beside load, one pass, a copy",
                lambda: seconds(*words),
                lambda: seconds("-c", PARTS, str(plain), auto_class),
                repeats,
            ),
            explanations(Pipeline.load(plain, config.parsed, torch.device("cpu")), repeats),
        ]
    table = Table("", "ours", "theirs", "ratio", "from run to run")
    for line in lines:
        table.add_row(*line)
    console.print(table)


if __name__ == "__main__":
    run(app)
