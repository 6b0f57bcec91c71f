"""Ask the running server what it makes of a text, and show it in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from scripts.addresses import Addresses
from scripts.asking import BODIES, ConfigOption, ModelOption, QuestionOption, TextArgument, ask, mode_of
from scripts.console import command, console, run
from scripts.server import CONFIG

app = command()

WIDTH = 30  # columns of a bar
COLOURS = ["bold cyan", "bold magenta", "bold yellow", "bold green", "bold blue"]


class Mode(NamedTuple):
    """How the answer of a mode is shown beside the text, and what is asked for to show."""

    show: Callable[[str, Any], None]
    parameters: Mapping[str, Any] = {}


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
    "sequence_classification": Mode(show_labels, {"top_k": None}),
    "token_classification": Mode(show_entities),
    "question_answering": Mode(show_answer),
    "text_generation": Mode(show_generated),
}


@app.command()
def main(
    text: TextArgument,
    model: ModelOption = "sequence_classification",
    question: QuestionOption = "",
    config: ConfigOption = CONFIG,
) -> None:
    """Ask the running server what it makes of a text.

    Examples:

      python -m scripts.predict "The tea was cold and nobody cared."

      python -m scripts.predict --model token_classification "Ada works at Siemens in Munich."

      python -m scripts.predict --model question_answering --question "Where does Ada work?" "Ada works at Siemens."

      python -m scripts.predict --model text_generation "Once upon a time"
    """
    addresses = Addresses.read(config)
    name = mode_of(addresses, model, question)
    mode = MODES[name]
    body = BODIES[name](text, question) | {"parameters": mode.parameters}
    mode.show(text, ask(addresses.inference, f"predictions/{model}", body))


if __name__ == "__main__":
    run(app)
