"""Ask the running server what it makes of a text, and show labels and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import requests
import typer
from rich.markup import escape
from rich.table import Table

from scripts.addresses import Addresses
from scripts.console import CommandError, command, console, run
from scripts.server import CONFIG
from scripts.torchserve import local

app = command()

WIDTH = 30  # columns of a bar


def ask(address: str, model: str, text: str) -> list[dict[str, Any]]:
    """Return all labels with scores, best first. Raises CommandError."""
    body = {"inputs": text, "parameters": {"top_k": None}}
    try:
        reply = local.post(f"{address}/predictions/{model}", json=body, timeout=120)
        content = reply.json()
    except requests.ConnectionError:
        raise CommandError(f"No server listens at {address}: start one with `make start`.") from None
    except requests.RequestException as error:  # too slow, or no JSON: not TorchServe
        raise CommandError(f"{address} does not answer as TorchServe does ({type(error).__name__}).") from error
    if reply.status_code != requests.codes.ok:
        told = content.get("error", content)
        raise CommandError(f"The server answered {reply.status_code}: {told['message']}")
    return content  # type: ignore[no-any-return]


@app.command()
def main(
    text: Annotated[str, typer.Argument(help="The text.")],
    model: Annotated[str, typer.Option(help="The archive's name.")] = "sequence_classification",
    config: Annotated[Path, typer.Option(help="The server's config.properties.")] = CONFIG,
) -> None:
    """Classify a text with the running server.

    Example: python -m scripts.predict "The tea was cold and nobody cared."
    """
    records = ask(Addresses.read(config).inference, model, text)
    table = Table(show_header=False, box=None)
    for record in records:
        table.add_row(
            escape(record["label"]), f"{record['score']:.3f}", "█" * round(WIDTH * min(max(record["score"], 0), 1))
        )
    console.print(text, style="italic", markup=False)
    console.print(table)


if __name__ == "__main__":
    run(app)
