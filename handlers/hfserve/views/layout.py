"""Text on lines of columns, as on a terminal: what is on which line, and in which order words are seen.

Words of right-to-left scripts go from right to left. This is Unicode's bidirectional algorithm (UAX 9) for whole words;
inside of a word the viewer sees to it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from hfserve.views.explained import Record, characters, sendable

BREAKS = ("\n", "\r", "\r\n")
SIDES = {"L": "L", "R": "R", "AL": "R"}  # of a letter's bidirectional class: from the left, from the right


class Cell(NamedTuple):
    """A character, or some in a row, the columns it takes, and the word it belongs to."""

    text: str
    columns: int
    word: Record | None


def cells(parts: Iterable[tuple[str, Record | None]]) -> Iterator[Cell]:
    """Cut pieces of text, each with its word, into characters."""
    for text, word in parts:
        for character in characters(sendable(text)):
            yield Cell(character, _columns(character), word)


def _columns(character: str) -> int:
    """Estimate the columns a character takes: 2 where it is wide or an emoji, 4 for a tab."""
    if character in BREAKS:
        return 0
    wide = any(unicodedata.east_asian_width(point) in "WF" for point in character) or "\ufe0f" in character
    return 4 if character == "\t" else 1 + wide


def lines(cells: Iterable[Cell], columns: int) -> Iterator[tuple[list[Cell], str]]:
    """Cut cells into lines, each with the side that its paragraph starts from."""
    rest = iter(cells)
    while paragraph := list(_paragraph(rest)):
        side = _side("".join(cell.text for cell in paragraph)) or "L"
        for line in _wrapped(paragraph, columns):
            yield line, side


def _paragraph(cells: Iterator[Cell]) -> Iterator[Cell]:
    for cell in cells:
        yield cell
        if cell.text in BREAKS:
            return


def _wrapped(paragraph: Iterable[Cell], columns: int) -> Iterator[list[Cell]]:
    """Wrap a paragraph after white space, and a word that is longer than a line anywhere."""
    line: list[Cell] = []
    for cell in paragraph:
        if not cell.text.isspace() and sum(each.columns for each in line) + cell.columns > columns:
            cut = max((i for i, each in enumerate(line, 1) if each.text.isspace()), default=len(line))
            yield line[:cut]
            line = line[cut:]
        line.append(cell)
    yield line


def merged(line: Iterable[Cell]) -> list[Cell]:
    """Put the characters of a word together, and those between words up to white space, which ends no line."""
    line = list(line)
    while line and line[-1].text.isspace():
        line.pop()
    groups = groupby(line, lambda cell: (id(cell.word), cell.word is None and cell.text.isspace()))
    runs = [list(group) for _, group in groups]
    return [Cell("".join(cell.text for cell in run), sum(cell.columns for cell in run), run[0].word) for run in runs]


def ordered(words: Sequence[Cell], side: str) -> list[tuple[Cell, str]]:
    """Order words as they are seen from left to right, each with its side: rules W7, N1, N2 and L2."""
    sides = [_side(word.text) for word in words]
    before = side
    for i, word in enumerate(words):
        if not sides[i] and any(letter.isdigit() for letter in word.text):
            sides[i] = before
        before = sides[i] or before
    for i, own in enumerate(sides):
        around = {sides[i - 1] if i else side, next(filter(None, sides[i + 1 :]), side)}
        sides[i] = own or (side if len(around) > 1 else around.pop())
    groups = [list(group) for _, group in groupby(zip(words, sides, strict=True), lambda pair: pair[1])]
    turned = [group[::-1] if group[0][1] == "R" else group for group in groups]
    return [pair for group in (turned if side == "L" else turned[::-1]) for pair in group]


def _side(text: str) -> str:
    """Return the side of a text's first letter that has one."""
    return next((SIDES[kind] for kind in map(unicodedata.bidirectional, text) if kind in SIDES), "")
