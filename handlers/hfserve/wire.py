"""Between TorchServe's rows and the data path: request row -> Call, answer -> status, content type and body text.

The request forms of transformers, of plain text, of TorchServe's example, of KServe v1 and of the Open Inference
Protocol (v2) all become one `Call`, and the answer goes back in the form the request came in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.message import Message
from http import HTTPStatus
from socket import socket
from typing import Any, Protocol

from hfserve import forms
from hfserve.bodies import content_type, decoded, read_body, read_json
from hfserve.errors import BadRequest, RequestError, UnsupportedMediaType, isolated
from hfserve.forms import Answer, Call, as_object
from hfserve.tasks.base import Json, Task
from hfserve.views.explained import plain_text, upstream_shape
from hfserve.views.pages import html_page
from hfserve.views.pictures import svg_picture

BODY_NAMES = ("body", "data")  # the raw body, or the form field that holds it
FIELDS = ("parameters", "target", "format")  # of a form, beside the body
JSON = dict.fromkeys(("application/json", "application/*", "*/*"), "json")
FORMATS = {**JSON, "text/plain": "text"}  # media type -> format
EXPLANATION_FORMATS = {
    **FORMATS,
    "text/html": "html",
    "image/svg+xml": "svg",
    "application/vnd.torchserve+json": "upstream",
}


class Describe:
    """A management request for the model description, which TorchServe sends through the prediction queue."""


class Context(Protocol):
    """What we use of ts.context.Context."""

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        """Headers of row idx, and the content type of each of its parts under the part's name."""
        ...

    request_ids: dict[int, str]  # of the rows that TorchServe waits for an answer to
    cl_socket: socket  # to the front end

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        """Status of row idx."""
        ...

    def get_response_status(self, idx: int) -> tuple[int, str]:
        """What was set."""
        ...

    def get_response_headers(self, idx: int) -> dict[str, str]:
        """What was set."""
        ...

    def get_response_content_type(self, idx: int) -> str | None:
        """What was set."""
        ...

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """A header of row idx's response."""
        ...


# --- requests ---------------------------------------------------------------------------------------------------------


def parse(row: Mapping[str, Any], headers: Mapping[str, Any]) -> Call | Describe | RequestError:
    """Read one row of a TorchServe batch: `{part name: value}` and its headers. Never raises."""
    return isolated(_parse, row, {str(name).lower(): value for name, value in headers.items()})


def _parse(row: Mapping[str, Any], headers: Mapping[str, Any]) -> Call | Describe:
    if headers.get("describe") == "True" and not row:  # a client's own header of that name comes with a body
        return Describe()
    name = next((name for name in BODY_NAMES if name in row), None)
    if name is None:
        raise UnsupportedMediaType(
            "No input found: send a JSON body with Content-Type: application/json, plain text, or a form field `data`."
        )
    call = forms.read(read_body(row[name], content_type(headers.get(name))))
    call = _with_fields(call, {field: value for field, value in row.items() if field != name})
    return _with_format(replace(call, explain=headers.get("explain") == "True"), str(headers.get("accept", "")))


def _with_fields(call: Call, fields: Mapping[str, Any]) -> Call:
    """Add what stands in form fields beside `data`."""
    given: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in FIELDS:
            raise BadRequest(f"Unknown form field: send data, {', '.join(FIELDS)}.", name)
        if getattr(call, name):
            raise BadRequest("Given in the body and in the form field: give them once.", name)
        given[name] = decoded(value, "utf-8") if isinstance(value, bytes | bytearray) else value
    parameters = given.pop("parameters", call.parameters)
    if isinstance(parameters, str):
        parameters = read_json(parameters, "parameters")
    return replace(call, parameters=as_object(parameters, "parameters"), **given)


def _with_format(call: Call, accept: str) -> Call:
    """Say in what format a call wants its answer: as its body says, of explanations its parameters too, or Accept."""
    offered = EXPLANATION_FORMATS if call.explain else FORMATS
    parameters = dict(call.parameters)
    field, asked = "format", call.format
    if call.explain and "format" in parameters:
        field, asked = "parameters.format", parameters.pop("format")
    if asked is None:
        asked = _preferred(accept, offered)
    if asked not in offered.values():
        raise BadRequest(f"Give one of {', '.join(dict.fromkeys(offered.values()))}.", field)
    return replace(call, parameters=parameters, format=asked)


def _preferred(accept: str, offered: Mapping[str, str]) -> str:
    """Choose what an Accept header puts first: by quality, then by order, as axios lists JSON first."""
    ranges = []
    for value in filter(None, map(str.strip, accept.split(","))):
        message = Message()
        message["content-type"] = value
        ranges.append(message)
    ranges.sort(key=_quality, reverse=True)
    known = [kind for kind in map(Message.get_content_type, filter(_quality, ranges)) if kind in offered]
    return offered[known[0]] if known else "json"


def _quality(media_range: Message) -> float:
    try:
        return float(str(media_range.get_param("q", "1")))
    except ValueError:
        return 0.0


# --- responses --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Response:
    """What one row is answered with."""

    body: str
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


def render(call: Call, answer: Answer | RequestError, task: Task, model_name: str) -> Response:
    """Turn the answer of a call into its response, in the form the call came in. Never raises."""
    if isinstance(answer, RequestError):
        return render_error(answer)
    response = isolated(RENDERERS[call.explain, call.format], call, answer, task, model_name)
    return render_error(response) if isinstance(response, RequestError) else response


def render_error(error: RequestError) -> Response:
    """Turn an error into its response: the one shape every error has."""
    status = error.status
    content = {"code": int(status), "type": error.type, "message": error.message, "field": error.field or "body"}
    return Response(to_json({"error": content}), status)


def to_json(content: Json) -> str:
    """Return strict JSON text that can be sent as UTF-8: NaN raises ValueError, half a character is escaped."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a client's key or id may hold a lone surrogate; TorchServe's worker would die of it
        return json.dumps(content, allow_nan=False)
    return text


def send(response: Response, context: Context, idx: int) -> str:
    """Set a response's status and headers on row `idx` of TorchServe's context, and return its body."""
    headers = {"content-type": "application/json", **response.headers}
    for name, value in headers.items():
        context.set_response_header(idx, name, value)
    context.set_response_status(int(response.status), response.status.phrase, idx)
    return response.body


def send_first(bodies: Mapping[int, str], context: Context) -> None:
    """Answer some rows of a batch now, with status and headers as set in the context, before the others have an answer.

    TorchServe ends a batch with the first message that has no part of a stream in it. So one row is sent as a stream,
    of one part and its end, and the rest as they are; taken out of the context's requests, they get no second answer.
    Where no row can be a stream, all wait for the end of the batch: over gRPC, and of an error TorchServe closes the
    connection behind its headers. To whoever is answered here TorchServe answers once more if the worker then dies.
    """
    from ts.protocol.otf_message_handler import create_predict_response

    stream = next((i for i in bodies if _may_stream(context, i)), None)
    if stream is None:
        return
    parts: list[tuple[int, str, bool | None]] = [(stream, bodies[stream], False), (stream, "", True)]
    parts += [(i, bodies[i], None) for i in bodies if i != stream]
    message = create_predict_response(
        [body for _, body, _ in parts],
        {n: context.request_ids[i] for n, (i, _, _) in enumerate(parts)},
        "Prediction success",
        HTTPStatus.OK,
        context=_Parts(context, parts),
    )
    context.cl_socket.sendall(message)
    for i in bodies:
        del context.request_ids[i]


def _may_stream(context: Context, row: int) -> bool:
    over_http = "host" in map(str.lower, context.get_all_request_header(row))
    return over_http and context.get_response_status(row)[0] < HTTPStatus.BAD_REQUEST


class _Parts:
    """What TorchServe asks of a context while it writes a message, for parts of rows: (row, body, whether it ends)."""

    def __init__(self, context: Context, parts: Sequence[tuple[int, str, bool | None]]) -> None:
        self.context = context
        self.rows = [row for row, _, _ in parts]
        self.stopping_criteria = [lambda _, ends=ends: ends for _, _, ends in parts]
        self.stream: dict[int, dict[str, str]] = {}

    def set_response_header(self, part: int, key: str, value: str) -> None:
        self.stream[part] = {key: value}

    def get_response_headers(self, part: int) -> dict[str, str]:
        return self.context.get_response_headers(self.rows[part]) | self.stream.get(part, {})

    def get_response_content_type(self, part: int) -> str | None:
        return self.context.get_response_content_type(self.rows[part])

    def get_response_status(self, part: int) -> tuple[int, str]:
        return self.context.get_response_status(self.rows[part])


def _render_short(call: Call, answer: Answer, task: Task, model_name: str) -> Response:
    """One line an input. There is no room for a truncation in it, so a header tells."""
    cut = forms.tell(answer.truncated)
    headers = {"content-type": "text/plain; charset=utf-8"} | ({"x-truncated": cut} if cut else {})
    return Response("\n".join(task.brief(result) for result in answer.results), headers=headers)


def _render_json(call: Call, answer: Answer, task: Task, model_name: str) -> Response:
    return Response(to_json(forms.write(call, answer, task, model_name)))


def _render_pages(call: Call, answer: Answer, task: Task, model_name: str) -> Response:
    return Response(html_page(answer.results), headers={"content-type": "text/html; charset=utf-8"})


def _render_picture(call: Call, answer: Answer, task: Task, model_name: str) -> Response:
    return Response(svg_picture(answer.results), headers={"content-type": "image/svg+xml"})


def _render_words(call: Call, answer: Answer, task: Task, model_name: str) -> Response:
    text = "\n\n".join(plain_text(result) for result in answer.results)
    return Response(text, headers={"content-type": "text/plain; charset=utf-8"})


def _render_upstream(call: Call, answer: Answer, task: Task, model_name: str) -> Response:
    results = [upstream_shape(result) for result in answer.results]
    body = to_json(results[0] if answer.lone else results)
    return Response(body, headers={"content-type": "application/vnd.torchserve+json"})


RENDERERS: dict[tuple[bool, str], Callable[[Call, Answer, Task, str], Response]] = {  # by Call.explain and Call.format
    (False, "json"): _render_json,
    (False, "text"): _render_short,
    (True, "json"): _render_json,
    (True, "text"): _render_words,
    (True, "html"): _render_pages,
    (True, "svg"): _render_picture,
    (True, "upstream"): _render_upstream,
}
