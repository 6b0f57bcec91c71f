"""What can go wrong with a request, each with its HTTP status; and with a configuration, told when it is loaded.

Errors of a request are values as much as exceptions: the data path keeps one beside the answers of its neighbours, and
`wire.render` is the one place that turns it into a response.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from http import HTTPStatus
from typing import ClassVar, ParamSpec, TypeVar

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class ConfigError(Exception):
    """The archive cannot be loaded as configured; the message names the key and the fix."""


class RequestError(Exception):
    """One request cannot be answered.

    message: one sentence that tells the client what to do. It never quotes the request's text.
    field: where the fault lies, as a path into what was sent (`parameters.top_k`, `inputs[2]`); "" for the whole body.
    """

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    @property
    def type(self) -> str:
        """The error's name in the answer, such as `BadRequest`."""
        return type(self).__name__

    def under(self, path: str) -> RequestError:
        """The same error with its field moved below `path`: `[2].text` under `inputs` is `inputs[2].text`."""
        joint = "." if path and self.field and not self.field.startswith("[") else ""
        return type(self)(self.message, path + joint + self.field)


class BadRequest(RequestError):
    """The body or a parameter is not what the task takes."""

    status = HTTPStatus.BAD_REQUEST


class TooLarge(RequestError):
    """Too many inputs, or too much text, for one request."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnsupportedMediaType(RequestError):
    """The content type is not one the task reads."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class Unprocessable(RequestError):
    """Well-formed, but this model cannot do it."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY


class TooSlow(RequestError):
    """The time a batch may take was used up before this request's turn."""

    status = HTTPStatus.GATEWAY_TIMEOUT


class OutOfMemory(RequestError):
    """This request alone needs more memory than there is."""

    status = HTTPStatus.INSUFFICIENT_STORAGE


class InternalError(RequestError):
    """Our fault: the log has the traceback, the client learns nothing internal."""


def report(error: Exception) -> InternalError:
    """Log an unexpected exception and return what the client is told of it.

    The log gets the stack and the exception's type. The message is left out, because messages quote values and the
    values of a request are its text; a RuntimeError's is kept, because torch raises those about shapes and memory.
    """
    message = f": {error}" if isinstance(error, RuntimeError) else ""
    stack = "".join(traceback.format_tb(error.__traceback__))
    logger.error("A request failed with %s%s\n%s", type(error).__name__, message, stack)
    return InternalError("The server failed on this request; its log has the reason.")


def isolated(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | RequestError:
    """`step(*args)`, with whatever it raises as a value, so that one request's fault stays its own."""
    try:
        return step(*args, **kwargs)
    except RequestError as error:
        return error
    except Exception as error:
        return report(error)
