"""What all commands share: where the repository is, the console they print to, and how they fail: one sentence."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"  # prepared weights, a folder a model
MODEL_STORE = ROOT / "model_store"  # built archives
ARTIFACTS = ROOT / "artifacts"  # one folder an archive: its configuration, samples and starter

console = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


class CommandError(Exception):
    """A command cannot go on; the message is a sentence or two that end with the way on."""


def command() -> typer.Typer:
    """Return an app for one command, or several, whose docstrings are shown as written by --help."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def run(app: typer.Typer) -> None:
    """Run an app from the command line: a CommandError is printed without a traceback and exits with 1."""
    try:
        app()
    except CommandError as error:
        stderr.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(1) from None
