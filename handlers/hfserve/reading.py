"""What a call asks, checked: its parameters, and its inputs as rows, each with its place for the errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hfserve.config import HandlerConfig
from hfserve.errors import BadRequest, RequestError, TooLarge, Unprocessable
from hfserve.explain import ExplanationParams
from hfserve.forms import Call
from hfserve.tasks.base import Json, Task, parameters


@dataclass(frozen=True)
class Row:
    """One item of one call, on its way through the model. `place` is its index in the call, `field` names it there.

    target: what the call wants explained of it, and where in the call that stands.
    """

    call: int
    place: int
    field: str
    item: Any
    target: Json = None
    target_field: str = "parameters.target"

    def blame(self, error: RequestError) -> RequestError:
        """Name this row in an error that names nothing, and the place of its target in one that names that."""
        if error.field.split(".")[0] == "target":
            return type(error)(error.message, self.target_field + error.field.removeprefix("target"))
        return error if error.field else error.under(self.field)


@dataclass(frozen=True)
class Asked:
    """A call, read. `lone`: it asks of one input, and is answered by one result rather than a list."""

    params: Any
    rows: list[Row]
    lone: bool


class Reader:
    """Reads the calls of one task, within the limits that its configuration sets."""

    def __init__(self, task: Task, config: HandlerConfig) -> None:
        self.task = task
        self.config = config

    def read(self, index: int, call: Call) -> Asked:
        """Check a call's parameters and turn its payload into rows. Raises RequestError."""
        (params,) = parameters(call.parameters, self.task.Params)
        return self._asked(index, call, params)

    def _asked(self, index: int, call: Call, params: Any) -> Asked:  # noqa: ANN401  # of the task
        self.task.check(params)
        try:
            self._check_count(self.task.holds(call.payload, params))  # before a million entries are looked at
            items = self.task.parse(call.payload, params)
            self._check_count(len(items))
            self._check_size(list(items.values()))
        except RequestError as error:
            raise error.under(call.root) from None
        fields = [BadRequest("", place).under(call.root).field for place in items]
        rows = [Row(index, i, field, item) for i, (field, item) in enumerate(zip(fields, items.values(), strict=True))]
        return Asked(params, rows, lone="" in items)

    def _check_count(self, count: int) -> None:
        most = self.config.max_inputs
        if count > most:
            raise TooLarge(f"{count} inputs, and a request may have {most}: send them in parts.")

    def _check_size(self, items: Sequence[Any]) -> None:
        size, most = sum(map(self.task.size, items)), self.config.max_characters
        if size > most:
            raise TooLarge(f"{size} characters, and a request may have {most}: send less at a time.")

    def read_why(self, index: int, call: Call) -> Asked:
        """Read a call for explanations, with what it wants explained. Raises RequestError."""
        if not self.config.captum_explanation:
            raise Unprocessable("Explanations are switched off (handler.captum_explanation): use /predictions.")
        if call.target is not None and "target" in call.parameters:
            raise BadRequest("Given beside the inputs and under parameters: give it once.", "target")
        given = {name: value for name, value in call.parameters.items() if name != "target"}
        own, how = parameters(given, self.task.Params, ExplanationParams)
        asked = self._asked(index, call, own)
        return Asked((own, how), [_with_target(row, call, len(asked.rows)) for row in asked.rows], asked.lone)


def _with_target(row: Row, call: Call, rows: int) -> Row:
    """Give a row what its call wants explained of it: beside its text, or for all under the parameters."""
    payload, listed = call.payload, isinstance(call.payload, list) and len(call.payload) == rows
    entry = payload[row.place] if listed else payload
    if isinstance(entry, dict) and entry.get("target") is not None:
        place = row.field if listed else call.root
        return replace(row, target=entry["target"], target_field=BadRequest("", "target").under(place).field)
    if call.target is not None:
        return replace(row, target=call.target, target_field="target")
    return replace(row, target=call.parameters.get("target"))
