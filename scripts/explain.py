"""Ask the running server why it says what it says of a text, and show the text shaded by it in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from hfserve.views import shades
from hfserve.views.explained import (
    NOTHING,
    Explained,
    Record,
    by_strength,
    cut,
    facts,
    number,
    pieces,
    said,
    sendable,
    strongest,
    visible,
    whole,
    written,
)
from hfserve.views.pages import html_page
from hfserve.views.pictures import svg_picture
from rich.color import Color
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from scripts.addresses import Addresses
from scripts.asking import BODIES, ConfigOption, ModelOption, QuestionOption, TextArgument, ask, mode_of
from scripts.console import CommandError, command, console, run
from scripts.server import CONFIG

app = command()

SCHEME = shades.DARK
LISTED, LISTED_PLAIN = 8, 24  # words with their numbers below a text: below one in shades, in none
TOP = 3  # words of a line
WIDTH = 24  # columns of the longest bar, where a third of the console has room for it


def show(item: Explained) -> None:
    """Show the explanations of an input: each by itself, or a line for each of the tokens that were generated."""
    if not item.records:
        console.print(NOTHING)
        return
    if written(item) and len(item.records) > 1:
        show_tokens(item)
    else:
        for record in item.records:
            show_record(item, record)
    if cut(item):
        console.print(cut(item))


def show_record(item: Explained, record: Record) -> None:
    """Show what is explained, the texts shaded by it, and the strongest words with their numbers."""
    kind, target, more = said(record)
    console.print()
    console.print(
        Text.assemble((f"{kind}  ", "dim"), (target, "bold"), f"  “{more}”" if more else "", "  ", chance(record))
    )
    if record is item.records[0]:
        console.print(legend())
    for name, text in item.texts.items():
        if len(item.texts) > 1:
            console.print(Text(name, "dim"))
        console.print(on_paper(shaded(text, name, record)))
    console.print(bars(record))
    console.print(Text(facts(record), "dim"))
    warn(record["converged"] is False)


def show_tokens(item: Explained) -> None:
    """Show a prompt and what follows it, then each of its tokens with the words that spoke loudest."""
    console.print()
    console.print(Text.assemble(*((sendable(piece), "bold" if new else "italic") for piece, new in whole(item))))
    console.print(legend())
    table = Table(show_header=False, box=None)
    for record in item.records:
        loudest = [labelled(word, record) for word in by_strength(record["words"])[:TOP]]
        table.add_row(Text(visible(record["target"]), "bold"), chance(record), Text("  ").join(loudest))
    console.print(on_paper(table))
    console.print(Text(facts_of_all(item.records), "dim"))
    warn(any(record["converged"] is False for record in item.records))


def facts_of_all(records: Sequence[Record]) -> str:
    """Tell how explanations were made, and how exact the worst is where their shares are to add up."""
    method = records[0]["method"].replace("_", " ").capitalize()
    if records[0]["converged"] is None:
        return f"{method}."
    return f"{method}. Convergence delta {max(abs(record['convergence_delta']) for record in records):.2g} at most."


def legend() -> Text:
    """Tell what the shades mean, or the signs where there are none."""
    if plain():
        return Text("+ speaks for what is explained, − against it.")
    return Text.assemble((" speaks for ", look(1.0)), "  ", (" speaks against ", look(-1.0)), "  what is explained")


def shaded(text: str, name: str, record: Record) -> Text:
    """Return a text with its words shaded by their scores."""
    shown = Text()
    for piece, word in pieces(text, name, record["words"]):
        part = word["score"] / (strongest(record) or 1) if word else 0.0
        shown.append(sendable(piece), look(part))
    return shown


def bars(record: Record) -> Table:
    """Return the strongest words, each with its number and a bar; the word last, as it may run from right to left."""
    width = min(WIDTH, console.width // 3)
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for word in by_strength(record["words"])[: LISTED_PLAIN if plain() else LISTED]:
        part = word["score"] / (strongest(record) or 1)
        line = shades.shade(1.0 if part > 0 else -1.0, SCHEME).background
        bar = Text("█" * round(width * abs(part)), Style(color=colour(line)))
        table.add_row(number(word["score"]), bar, Text(visible(word["text"])))
    return table


def labelled(word: Record, record: Record) -> Text:
    """Return a word in its shade with its number."""
    part = word["score"] / (strongest(record) or 1)
    return Text.assemble((visible(word["text"]), look(part)), " ", (number(word["score"]), "dim"))


def chance(record: Record) -> Text:
    """Return the score of what was predicted, if it has one."""
    score = record["prediction"].get("score")
    return Text("" if score is None else f"{score:.3f}")


def look(part: float) -> Style:
    """Return the look of a word, its part in the strongest one given: beside the colours, an underline speaks for."""
    if plain() or shades.level(part, 1.0) == "z":
        return Style()
    shade = shades.shade(part, SCHEME)
    return Style(color=colour(shade.ink), bgcolor=colour(shade.background), underline=part > 0, italic=part < 0)


def on_paper(shown: Text | Table) -> Text | Table | Padding:
    """Put words on the paper that its shades were made for, whatever the terminal's is."""
    paper = Style(color=colour(SCHEME.ink), bgcolor=colour(SCHEME.paper))
    return shown if plain() else Padding(shown, (0, 1), style=paper)


def colour(rgb: shades.RGB) -> Color:
    """Return a colour as rich has it."""
    return Color.from_rgb(*rgb)


def plain() -> bool:
    """Whether what we print to shows no colours: a file, a pipe, or a terminal whose user wants none."""
    return console.no_color or console.color_system is None


def warn(rough: bool) -> None:
    """Tell of numbers that did not converge."""
    if rough:
        console.print("Not converged, the numbers are rough: ask for more steps with --n-steps.", style="bold")


def target_of(text: str) -> Any:  # noqa: ANN401  # what may be a target depends on the mode
    """Read a target: a number, list or object in JSON, and else the text as it stands; JSON's quotes make a text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if type(value) in (int, str, list, dict) else text


def check(path: Path | None) -> None:
    """Refuse a file that cannot be written, before anything is asked. Raises CommandError."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise CommandError(f"Cannot write {path}: give a file in a folder that exists.")


def save(path: Path | None, view: Callable[[Sequence[Explained]], str], item: Explained) -> None:
    """Write a view of an input's explanations to a file, if one is given. Raises CommandError."""
    if path is None:
        return
    try:
        path.write_text(view([item]), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"Cannot write {path} ({error.strerror}): give a file in a folder that exists.") from error
    console.print(f"{path} is written.", markup=False, soft_wrap=True)


@app.command()
def main(
    text: TextArgument,
    model: ModelOption = "sequence_classification",
    question: QuestionOption = "",
    target: Annotated[
        str, typer.Option(help="What to explain, in place of what is predicted: a label, a text, a number, or JSON.")
    ] = "",
    method: Annotated[
        str, typer.Option(help="layer_integrated_gradients, input_x_gradient or occlusion.")
    ] = "layer_integrated_gradients",
    n_steps: Annotated[int | None, typer.Option(help="In place of as many as it takes.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the explanation to this file, as a page.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write it to this file, as a picture.")] = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Ask the running server why it says what it says of a text.

    Examples:

      python -m scripts.explain "The tea was cold and nobody cared."

      python -m scripts.explain --target POSITIVE --html tea.html "The tea was cold and nobody cared."

      python -m scripts.explain --model token_classification --target LOC "Ada works at Siemens in Munich."

      python -m scripts.explain --model question_answering --question "Where does Ada work?" "Ada works at Siemens."

      python -m scripts.explain --model text_generation --target " there was a cat" "Once upon a time"
    """
    check(html)
    check(svg)
    addresses = Addresses.read(config)
    mode = mode_of(addresses, model, question)
    parameters = {"method": method, "n_steps": n_steps} | ({"target": target_of(target)} if target else {})
    texts = BODIES[mode](text, question.strip())  # places in the answer are those of a question without its margins
    answer = ask(addresses.inference, f"explanations/{model}", texts | {"parameters": parameters})
    item = Explained(texts, answer if isinstance(answer, list) else [answer], lone=isinstance(answer, dict))
    show(item)
    save(html, html_page, item)
    save(svg, svg_picture, item)


if __name__ == "__main__":
    run(app)
