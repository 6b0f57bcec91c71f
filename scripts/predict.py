"""Ask the running server what it makes of a text, and show it in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import requests
import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from scripts.addresses import Addresses
from scripts.console import CommandError, command, console, run
from scripts.server import CONFIG
from scripts.torchserve import describe, local

app = command()

WIDTH = 30  # columns of a bar
COLOURS = ["bold cyan", "bold magenta", "bold yellow", "bold green", "bold blue"]


class Mode(NamedTuple):
    """How a mode is asked, from a text and a question, and how its answer is shown beside the text."""

    body: Callable[[str, str], dict[str, Any]]
    show: Callable[[str, Any], None]


def show_labels(text: str, records: list[dict[str, Any]]) -> None:
    """Show the text, and each label with a bar."""
    table = Table(show_header=False, box=None)
    for record in records:
        bar = "█" * round(WIDTH * min(max(record["score"], 0), 1))
        table.add_row(escape(record["label"]), f"{record['score']:.3f}", bar)
    console.print(text, style="italic", markup=False)
    console.print(table)


def show_entities(text: str, records: list[dict[str, Any]]) -> None:
    """Show the text with its entities in colour, and a line for each."""
    kinds = sorted({record["entity_group"] for record in records})
    colours = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)}
    shown, table = Text(text, "italic"), Table(show_header=False, box=None)
    for record in records:
        kind, start, end = record["entity_group"], record["start"], record["end"]
        shown.stylize(colours[kind], start, end)
        table.add_row(Text(kind, colours[kind]), f"{record['score']:.3f}", Text(text[start:end]))
    console.print(shown)
    console.print(table if records else "No entities.")


def show_answer(text: str, record: dict[str, Any]) -> None:
    """Show the context with the answer in colour, and the answer below."""
    shown = Text(text, "italic")
    shown.stylize(COLOURS[0], record["start"], record["end"])
    console.print(shown)
    console.print(f"{record['answer']}  {record['score']:.3f}", markup=False)


def show_generated(text: str, record: dict[str, Any]) -> None:
    """Show the prompt and what follows it."""
    console.print(Text(text, "italic") + Text(record["generated_text"], "bold"))


MODES = {
    "sequence_classification": Mode(lambda text, _: {"inputs": text, "parameters": {"top_k": None}}, show_labels),
    "token_classification": Mode(lambda text, _: {"inputs": text}, show_entities),
    "question_answering": Mode(lambda text, question: {"question": question, "context": text}, show_answer),
    "text_generation": Mode(lambda text, _: {"inputs": text}, show_generated),
}


def ask(address: str, model: str, body: dict[str, Any]) -> Any:  # noqa: ANN401  # each mode has its own JSON
    """Return what the server answers. Raises CommandError."""
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
    return content


def mode_of(management: str, model: str) -> str:
    """Return what a served model does. Raises CommandError."""
    try:
        return str(describe(management, model, customized=True)["customizedMetadata"]["mode"])
    except requests.ConnectionError:
        raise CommandError(f"No server listens at {management}: start one with `make start`.") from None
    except (requests.RequestException, KeyError) as error:
        raise CommandError(f"The server does not serve {model}: `make status` shows what it serves.") from error


@app.command()
def main(
    text: Annotated[str, typer.Argument(help="The text, the context of a question, or a prompt.")],
    model: Annotated[str, typer.Option(help="The archive's name.")] = "sequence_classification",
    question: Annotated[str, typer.Option(help="What to ask of the text, where the model answers questions.")] = "",
    config: Annotated[Path, typer.Option(help="The server's config.properties.")] = CONFIG,
) -> None:
    """Ask the running server what it makes of a text.

    Examples:

      python -m scripts.predict "The tea was cold and nobody cared."

      python -m scripts.predict --model token_classification "Ada works at Siemens in Munich."

      python -m scripts.predict --model question_answering --question "Where does Ada work?" "Ada works at Siemens."

      python -m scripts.predict --model text_generation "Once upon a time"
    """
    addresses = Addresses.read(config)
    name = mode_of(addresses.management, model)
    if name == "question_answering" and not question:
        raise CommandError('What shall it answer? Give a question: --question "...", or QUESTION="..." to make.')
    mode = MODES[name]
    mode.show(text, ask(addresses.inference, model, mode.body(text, question)))


if __name__ == "__main__":
    run(app)
