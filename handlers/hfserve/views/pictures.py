"""An explanation as a picture: one static SVG, which needs no script and no font of its own.

Words are laid out by the columns they take on a terminal, and each is fitted into its columns by `textLength`: so the
shades fit the words whatever font there is.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from hfserve.views import shades
from hfserve.views.explained import (
    NOTHING,
    Explained,
    Record,
    cut,
    facts,
    number,
    pieces,
    said,
    sendable,
    strongest,
    title,
)
from hfserve.views.layout import Cell, cells, lines, merged, ordered

COLUMNS, SMALL_COLUMNS = 80, 100  # of a line, and of one in small letters
LINES, RECORDS = 40, 20  # of a text, and of a picture
UNIT, HEIGHT, MARGIN = 10, 34, 32  # pixels: a column's width, a line's height, and around the picture
LEGEND: list[tuple[str, Record | None]] = [
    ("speaks for", {"score": 1.0}),
    ("  ", None),
    ("speaks against", {"score": -1.0}),
    ("  what is explained", None),
]
RULES = (
    'text{font:17px ui-monospace,Menlo,Consolas,"Noto Sans Mono","DejaVu Sans Mono",monospace;white-space:pre}'
    "text.head{font-weight:700}text.small{font-size:13px;opacity:.75}"
    "rect{fill:none}path{stroke-width:2}[class^=n] path{stroke-dasharray:2 3}"
)


def svg_picture(items: Sequence[Explained]) -> str:
    """Return the picture that shows the explanations of a request's inputs, the first `RECORDS` of them."""
    pairs = [(item, record) for item in items for record in item.records or (None,)]
    rows = [_row(cells(LEGEND), "L", 1.0)]
    for item, record in pairs[:RECORDS]:
        rows += ["", *_explanation(item, record)]
    if len(pairs) > RECORDS:
        rows += ["", _left_out(len(pairs) - RECORDS, "explanations")]
    width, height = COLUMNS * UNIT + 2 * MARGIN, len(rows) * HEIGHT + 2 * MARGIN
    drawn = "".join(
        f'<g transform="translate({MARGIN} {MARGIN + i * HEIGHT})">{row}</g>\n' for i, row in enumerate(rows) if row
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f"<title>{_text(title(items))}</title>\n<style>{RULES}{shades.style(_paper, _rule)}</style>\n"
        f'<rect class="paper" width="100%" height="100%"/>\n{drawn}</svg>\n'
    )


def _paper(scheme: shades.Scheme) -> str:
    return f".paper{{fill:{shades.css(scheme.paper)}}}text{{fill:{shades.css(scheme.ink)}}}"


def _rule(level: str, shade: shades.Shade) -> str:
    return f".{level} rect{{fill:{shades.css(shade.background)}}}.{level} path{{stroke:{shades.css(shade.line)}}}"


def _explanation(item: Explained, record: Record | None) -> Iterator[str]:
    """Draw the lines of one explanation, or of a text that has none."""
    if record:
        kind, target, more = said(record)
        score = record["prediction"].get("score")
        words = [
            kind,
            f"\u2068{target}\u2069",
            more and f"“\u2068{more}\u2069”",
            "" if score is None else f"{score:.3f}",
        ]
        yield _caption("  ".join(filter(None, words)), "head")
    for name, text in item.texts.items():
        if len(item.texts) > 1:
            yield _caption(name)
        yield from _shaded(text, name, record)
    yield _caption(facts(record) if record else NOTHING)
    if record and record["converged"] is False:
        yield _caption("Not converged. The scores are rough: ask for more steps with n_steps.")
    if record and record is item.records[0] and cut(item):
        yield _caption(cut(item))


def _shaded(text: str, name: str, record: Record | None) -> Iterator[str]:
    """Draw a text, shaded by its words; one that is too long from its first word on."""
    parts = list(pieces(text, name, record["words"] if record else ()))
    left = len(text)
    if left > COLUMNS * LINES and len(parts) > 1 and parts[0][1] is None:
        skipped = len(parts.pop(0)[0])
        yield _left_out(skipped, "characters")
        left -= skipped
    for line, side in islice(lines(islice(cells(parts), (COLUMNS + 1) * LINES), COLUMNS), LINES):  # enough to fill them
        left -= sum(len(cell.text) for cell in line)
        yield _row(line, side, strongest(record) if record else 0.0)
    if left:
        yield _left_out(left, "characters")


def _row(line: Iterable[Cell], side: str, top: float) -> str:
    """Draw a line: its words in the order in which they are seen, from the side where the line starts."""
    words = merged(line)
    at = 0 if side == "L" else COLUMNS - sum(word.columns for word in words)
    drawn = []
    for word, direction in ordered(words, side):
        drawn.append(_drawn(word, direction, at * UNIT, top))
        at += word.columns
    return "".join(drawn)


def _drawn(word: Cell, side: str, x: int, top: float) -> str:
    width = word.columns * UNIT
    turned = ' direction="rtl"' if side == "R" else ""
    text = ""
    if not word.text.isspace():
        fit = f'textLength="{width}" lengthAdjust="spacingAndGlyphs" text-anchor="middle"{turned}'
        text = f'<text x="{x + width / 2:g}" y="22" {fit}>{_text(word.text)}</text>'
    if word.word is None:
        return text
    score = word.word["score"]
    return (
        f'<g class="{shades.level(score, top)}"><title>{number(score)}</title>'
        f'<rect x="{x}" y="2" width="{width}" height="28" rx="4"/>{text}<path d="M{x} 27.5h{width}"/></g>'
    )


def _left_out(count: int, what: str) -> str:
    return _caption(f"… {count:,} {what} are left out of this picture.")


def _caption(text: str, kind: str = "small") -> str:
    """Draw a line of our own, cut where it would be too long."""
    room = SMALL_COLUMNS if kind == "small" else COLUMNS
    fitting = []
    for cell in cells([(text, None)]):
        room -= cell.columns
        if room <= 0:
            fitting.append("…")
            break
        fitting.append(cell.text)
    return f'<text class="{kind}" y="22">{_text("".join(fitting))}</text>'


def _text(text: str) -> str:
    return html.escape(sendable(text))
