"""The colours of a score: blue speaks for what is explained, orange against it.

The hues are those of sky blue, blue, orange and vermilion in Okabe and Ito's "Color Universal Design" palette
(https://jfly.uni-koeln.de/color/), which readers of every kind of colour vision tell apart. A second cue goes with
them: the underline is solid under what speaks for, and dotted under what speaks against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RGB = tuple[int, int, int]  # red, green, blue of 0 to 255


@dataclass(frozen=True)
class Shade:
    """The colours of one score: behind a word, of its letters and of its underline."""

    background: RGB
    ink: RGB
    line: RGB


@dataclass(frozen=True)
class Scheme:
    """The colours of a page: its paper, its ink, and the (background, line) of the strongest word of either sign."""

    paper: RGB
    ink: RGB
    positive: tuple[RGB, RGB]
    negative: tuple[RGB, RGB]


LIGHT = Scheme((255, 255, 255), (27, 31, 36), ((86, 180, 233), (0, 76, 122)), ((240, 160, 50), (124, 48, 0)))
DARK = Scheme((20, 23, 28), (232, 234, 237), ((0, 96, 158), (126, 200, 242)), ((158, 70, 0), (255, 190, 84)))
LEVELS = 10  # of either sign in a style sheet
STEPS = [sign * step / LEVELS for sign in (1, -1) for step in range(1, LEVELS + 1)]


def shade(score: float, scheme: Scheme = LIGHT) -> Shade:
    """Return the colours of a score of -1 to 1; what is beyond has the colours of the nearer end."""
    full, line = scheme.positive if score > 0 else scheme.negative
    part = min(abs(score), 1.0)
    return Shade(_mix(scheme.paper, full, part), scheme.ink, _mix(scheme.paper, line, 0.6 + 0.4 * part))


def level(score: float, strongest: float) -> str:
    """Name the level of a score as style sheets do: `p10` is the strongest for, `n3` weakly against, `z` next to 0."""
    step = round(LEVELS * min(abs(score) / strongest, 1.0)) if strongest else 0
    return f"{'p' if score > 0 else 'n'}{step}" if step else "z"


def style(paper: Callable[[Scheme], str], rule: Callable[[str, Shade], str]) -> str:
    """Return a style sheet, in the light and in the dark: `paper(scheme)` and `rule(level, shade)` for every level."""
    light, dark = (
        paper(scheme) + "".join(rule(level(step, 1.0), shade(step, scheme)) for step in STEPS)
        for scheme in (LIGHT, DARK)
    )
    return f"{light}@media screen and (prefers-color-scheme:dark){{{dark}}}"


def css(colour: RGB) -> str:
    """Return a colour as style sheets write it."""
    return "#" + bytes(colour).hex()


def _mix(start: RGB, end: RGB, part: float) -> RGB:
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(start, end, strict=True))
    return red, green, blue
