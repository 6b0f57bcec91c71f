"""Reading what a request sent, with the place of each fault for the error's field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from hfserve.errors import BadRequest
from hfserve.tasks.base import Json

Item = TypeVar("Item")

TEXT_KEYS = ("text", "inputs", "data")  # the first is ours, the others come from other servers' clients


def each(payload: Json, read: Callable[[Json, str], Item]) -> dict[str, Item]:
    """Apply `read(entry, place)` to every entry of a list, or to a lone input, whose place is ""."""
    if not isinstance(payload, list):
        return {"": read(payload, "")}
    if not payload:
        raise BadRequest("The list is empty: send at least one input.")
    return {f"[{i}]": read(entry, f"[{i}]") for i, entry in enumerate(payload)}


def lone_text(entry: Json, place: str) -> str:
    """Read a text, or an object whose one text stands under any of TEXT_KEYS."""
    if not isinstance(entry, dict):
        return text(entry, place)
    key = text_key(entry)
    refuse_other_keys(entry, place, (key,), "a text object has text")
    return text(entry.get(key), join(place, key))


def text_key(entry: dict[str, Json]) -> str:
    """Return the key that the text of an object stands under."""
    return next((key for key in TEXT_KEYS if key in entry), "text")


def refuse_other_keys(entry: dict[str, Json], place: str, known: tuple[str, ...], has: str) -> None:
    """Raise BadRequest for a key we do not know; `target`, what to explain, has no effect on a prediction."""
    for name in entry:
        if name not in (*known, "target"):
            raise BadRequest(f"Unknown key; {has}.", join(place, name))


def text(value: Json, place: str) -> str:
    """Return `value` if it is a text that a tokenizer takes. Raises BadRequest."""
    if not isinstance(value, str):
        raise BadRequest("Give a text: a JSON string.", place)
    if not value.strip():
        raise BadRequest("The text is empty.", place)
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair; no tokenizer takes it
        raise BadRequest("The text holds half a character (a lone surrogate); send valid Unicode.", place) from None
    return value


def stretch(asked: dict[str, Json], known: Sequence[str], text: str) -> tuple[int, int]:
    """Read the characters `start` to `end` of a text out of a request's target. Raises BadRequest."""
    for name in asked:
        if name not in known:
            raise BadRequest(f"Unknown key; it has {', '.join(known)}.", f"target.{name}")
    places: list[int] = []
    for name in ("start", "end"):
        place = asked.get(name)
        if type(place) is not int or not 0 <= place <= len(text):
            raise BadRequest(f"Give a whole number from 0 to {len(text)}, a place in the text.", f"target.{name}")
        places.append(place)
    start, end = places
    if not start < end:
        raise BadRequest("It ends where it starts, or before: give a larger number.", "target.end")
    return start, end


def whole_number(asked: Json) -> Json:
    """Return the number that a text is the digits of, as tensors of texts have them, and all else as it is."""
    return int(asked) if isinstance(asked, str) and asked.isdecimal() and len(asked) < 10 else asked


def join(place: str, name: object) -> str:
    """Return the path of a member of what stands at `place`."""
    return f"{place}.{name}" if place else str(name)
