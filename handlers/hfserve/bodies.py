"""The body of a request, from bytes to what they say: JSON, plain text, or what TorchServe's sample files have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from email.message import Message

from hfserve.errors import BadRequest, UnsupportedMediaType
from hfserve.tasks.base import Json

UNTYPED = "unknown/unknown"  # a body without a content type


def content_type(part: object) -> Message:
    """Return the media type and charset of a part; TorchServe keeps them under the part's name."""
    message = Message()
    message["content-type"] = (part.get("content-type") if isinstance(part, Mapping) else "") or UNTYPED
    return message


def read_body(value: object, content_type: Message) -> Json:
    """Turn a body into what it says: by its content type where it has one, by its look where it has none."""
    media_type = content_type.get_content_type()
    if media_type not in READERS:
        known = ", ".join(kind for kind in READERS if kind != UNTYPED)
        raise UnsupportedMediaType(f"Content type {media_type!r} is not read here: send {known}.")
    if isinstance(value, str) and media_type == "text/plain":
        value = value.encode()  # TorchServe decodes text as UTF-8, whatever its charset
    if not isinstance(value, bytes | bytearray):
        return value  # TorchServe decodes exactly application/json to what it says
    text = decoded(value, content_type.get_content_charset("utf-8"))
    if not text.strip():
        raise BadRequest("The body is empty: send a text, or JSON with `inputs`.")
    return READERS[media_type](text)


def decoded(value: str | bytes | bytearray, charset: str = "utf-8") -> str:
    """Return bytes as the text they are. Raises BadRequest, or UnsupportedMediaType."""
    if isinstance(value, str):
        return value
    try:
        return value.decode(charset).removeprefix("\ufeff")  # a byte order mark, as files from Windows begin with
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not valid {charset} from byte {error.start} on: send UTF-8.") from None
    except (LookupError, ValueError):  # ValueError: Python has a charset named `undefined`
        raise UnsupportedMediaType(f"Charset {charset!r} is unknown: send UTF-8.") from None


def read_json(text: str, where: str = "") -> Json:
    """Read a JSON text. Raises BadRequest for field `where`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"Not valid JSON: {error.msg} at line {error.lineno} column {error.colno}.", where) from None
    except (RecursionError, ValueError):
        raise BadRequest("Not JSON we can read: nested too deep, or a number too long.", where) from None


def _guess(text: str) -> Json:
    """A body without a content type, as `curl -T file` sends it: JSON, TorchServe's single-quoted JSON, or a text."""
    stripped = text.strip()
    if stripped[0] not in "{[":
        return text
    for read in (json.loads, _read_quoted):
        try:
            return read(stripped)
        except (RecursionError, ValueError):
            continue
    if OPENING.match(stripped):
        raise BadRequest("It opens like JSON and is none: mend it, or send Content-Type: text/plain for a text.")
    return text


def _read_quoted(text: str) -> Json:
    """Read `{'text': 'so', 'target': (1, 2)}` as TorchServe's sample files have it: written as JSON, then parsed."""
    return json.loads(LITERAL.sub(_as_json, text))


OPENING = re.compile(r"""[{\[]\s*['"]""")
# A quoted string with its escapes, one of Python's words, a tuple's bracket with the comma that may stand before it, or
# what stands outside of a string in no Python literal. The last ends the scan at once, which would otherwise look for
# the end of a string from every quote on.
LITERAL = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|\b(None|True|False)\b|(\(|,?\))|(['"\\])""", re.DOTALL)
ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
CONTROL = {"n": "\n", "t": "\t", "r": "\r"}
WORDS = {"None": "null", "True": "true", "False": "false"}


def _as_json(literal: re.Match[str]) -> str:
    if literal[4]:
        raise ValueError("a quote or a backslash outside of a string")
    if literal[3]:
        return "[" if literal[3] == "(" else "]"
    return WORDS[literal[2]] if literal[2] else json.dumps(ESCAPE.sub(_unescape, literal[1][1:-1]))


def _unescape(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2] or escape[3]
    return chr(int(code, 16)) if code else CONTROL.get(escape[4], escape[4])


READERS: dict[str, Callable[[str], Json]] = {
    "application/json": read_json,
    "text/plain": lambda text: text,
    "application/octet-stream": _guess,
    UNTYPED: _guess,
}
