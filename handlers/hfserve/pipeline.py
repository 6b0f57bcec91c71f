"""The data path of one batch of calls: parse -> encode -> forward -> decode, each row alone in its faults.

Calls with equal parameters share forward passes. The rows of a pass are of like length, because every row is padded to
the longest one of its pass. A pass that fails is halved until the row at fault stands alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hfserve.config import Config
from hfserve.engines import engine_class, engines_for
from hfserve.engines.base import Engine
from hfserve.errors import BadRequest, ConfigError, OutOfMemory, RequestError, TooLarge, TooSlow, isolated, report
from hfserve.forms import Answer, Call
from hfserve.pace import Paced
from hfserve.proof import TOLERANCE, replay
from hfserve.tasks import task_class
from hfserve.tasks.base import Json, Refused, Task, Truncation, parameters

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One item of one call, on its way through the model. `place` is its index in the call, `field` names it there."""

    call: int
    place: int
    field: str
    item: Any

    def blame(self, error: RequestError) -> RequestError:
        """Name this row in an error that names nothing."""
        return error if error.field else error.under(self.field)


@dataclass(frozen=True)
class Asked:
    """A call, read. `lone`: it asks of one input, and is answered by one result rather than a list."""

    params: Any
    rows: list[Row]
    lone: bool


@dataclass(frozen=True)
class Result:
    """What the model says of one row."""

    value: Json
    truncated: Truncation | None


class Pipeline:
    """A task and an engine, ready to answer. It needs no server: `Pipeline.load(...).answer([Call("I loved it.")])`."""

    def __init__(self, task: Task, engine: Engine, config: Config) -> None:
        self.task = task
        self.engine = engine
        self.config = config
        self.pace = 0.0  # seconds a character takes in the longest row; measured by warm_up

    @classmethod
    def load(cls, model_dir: Path, config: Config, device: torch.device) -> Pipeline:
        """Load task and engine from a model folder and run them once. Raises ConfigError.

        Where the first engine does not work on this machine the next is taken, with one warning that says why.
        """
        task = task_class(config.handler.mode)(model_dir, config.handler)
        *preferred, last = engines_for(task, config)
        for name in preferred:
            try:
                return cls._start(task, name, model_dir, config, device)
            except ConfigError:
                raise
            except Exception as error:
                logger.warning("Engine %r does not work here, %r serves instead: %s", name, last, _first_line(error))
        try:
            return cls._start(task, last, model_dir, config, device)
        except (Refused, RequestError) as error:
            raise ConfigError("The model takes not even a short input: set handler.max_length higher.") from error
        except (IndexError, RuntimeError) as error:
            raise ConfigError(
                f"The model fails on its self-test ({_first_line(error)}): set handler.max_length lower, or give it "
                "the tokenizer it was trained with."
            ) from error

    @classmethod
    def _start(cls, task: Task, name: str, model_dir: Path, config: Config, device: torch.device) -> Pipeline:
        pipeline = cls(task, engine_class(name).load(model_dir, task, config, device), config)
        pipeline.warm_up()
        return pipeline

    def warm_up(self) -> None:
        """Run every kind of shape once: one row and two, the shortest and the longest. Raises what the model raises.

        It compiles what has to be compiled before the first request, and proves that the model takes its longest text.
        """
        shortest, longest = self.task.samples()
        for items in ([shortest], [shortest, shortest], [longest], [longest, shortest]):
            self._pass(items, self.task.trial())
        start = time.monotonic()
        self._pass([longest], self.task.trial())  # once more: nothing is left to compile
        self.pace = (time.monotonic() - start) / self._size([longest])

    def prove(self, folder: Path, claims: Mapping[str, Any]) -> float:
        """Replay an archive's golden inputs; return the largest difference. Raises ConfigError beyond the tolerance."""
        handler = self.config.handler
        where = f"engine {self.engine.name}, {handler.precision}, {self.engine.device}"
        model = Paced(self.engine, handler.max_rows)
        return replay(folder, claims, self.task, model, handler.tolerance or TOLERANCE[handler.precision], where)

    def answer(self, calls: Sequence[Call]) -> list[Answer | RequestError]:
        """Answer each call, in order; a call's error is its own."""
        deadline = time.monotonic() + self.config.time_budget
        rows: dict[Hashable, list[Row]] = defaultdict(list)  # by parameters
        found: list[dict[int, Result | RequestError] | RequestError] = []
        lone: list[bool] = []
        for index, call in enumerate(calls):
            read = isolated(self._read, index, call)
            found.append(read if isinstance(read, RequestError) else {})
            lone.append(isinstance(read, Asked) and read.lone)
            if isinstance(read, Asked):
                rows[read.params] += read.rows
        for params, group in rows.items():
            for part in _passes(group, self.task, self.config.handler.max_rows):
                for row, result in zip(part, self._run(part, params, deadline), strict=True):
                    found[row.call][row.place] = result  # type: ignore[index]  # a call with rows has a dict
        return [
            results if isinstance(results, RequestError) else _collect(results, alone)
            for results, alone in zip(found, lone, strict=True)
        ]

    def describe(self) -> dict[str, Json]:
        """Return what the model description says of task and engine."""
        limits = {"max_inputs": self.config.handler.max_inputs, "max_characters": self.config.handler.max_characters}
        return {
            "mode": self.task.name,
            **self.task.describe(),
            **limits,
            "engine": self.engine.name,
            "device": str(self.engine.device),
            "precision": self.config.handler.precision,
        }

    def _read(self, index: int, call: Call) -> Asked:
        """Check a call's parameters and turn its payload into rows. Raises RequestError."""
        params = parameters(self.task.Params, call.parameters)
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
        most = self.config.handler.max_inputs
        if count > most:
            raise TooLarge(f"{count} inputs, and a request may have {most}: send them in parts.")

    def _check_size(self, items: Sequence[Any]) -> None:
        size, most = self._size(items), self.config.handler.max_characters
        if size > most:
            raise TooLarge(f"{size} characters, and a request may have {most}: send less at a time.")

    def _run(self, rows: Sequence[Row], params: Any, deadline: float) -> list[Result | RequestError]:  # noqa: ANN401
        """Answer every row of a pass; what fails is tried again in halves, until the row at fault stands alone."""
        if not rows:
            return []
        items = [row.item for row in rows]
        left = deadline - time.monotonic()
        if left < 0:
            late = TooSlow("The batch took its whole time before this input's turn: try again, or send less.")
            return [row.blame(late) for row in rows]
        if len(rows) > 1 and self.pace * self._size(items) > left:
            return self._halves(rows, params, deadline)
        try:
            return list(self._pass(items, params, deadline))
        except Refused as refused:
            errors = {i: rows[i].blame(error) for i, error in refused.errors.items()}
        except RequestError as error:
            errors = {i: row.blame(error) for i, row in enumerate(rows)}
        except torch.AcceleratorError as error:
            report(error)  # the device is lost to this process, and each later request would fail: end, to be restarted
            raise SystemExit(
                "The accelerator failed; this worker ends so that a new one can take its place."
            ) from error
        except Exception as error:
            errors = {0: rows[0].blame(_reason(error))} if len(rows) == 1 else {}
        # outside of the except clauses: there the exception would keep the failed pass's tensors in memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if errors:
            rest = iter(self._run([row for i, row in enumerate(rows) if i not in errors], params, deadline))
            return [errors[i] if i in errors else next(rest) for i in range(len(rows))]
        return self._halves(rows, params, deadline)

    def _halves(self, rows: Sequence[Row], params: Any, deadline: float) -> list[Result | RequestError]:  # noqa: ANN401
        half = len(rows) // 2
        return self._run(rows[:half], params, deadline) + self._run(rows[half:], params, deadline)

    def _size(self, items: Sequence[Any]) -> int:
        return sum(map(self.task.size, items))

    def _pass(self, items: Sequence[Any], params: Any, deadline: float = math.inf) -> Iterator[Result]:  # noqa: ANN401
        """One pass: a result for each item, in order."""
        batch = self.task.encode(items, params)
        model = Paced(self.engine, self.config.handler.max_rows, deadline)
        values = self.task.decode(self.task.forward(model, batch, params), batch, params)
        cut: Mapping[int, Truncation] = batch.truncated or {}
        return (Result(value, cut.get(i)) for i, value in zip(range(len(items)), values, strict=True))


def _passes(rows: Sequence[Row], task: Task, most: int) -> Iterator[list[Row]]:
    """Cut rows into passes of at most `most`, like sizes together: a row is padded to the longest of its pass."""
    ordered = sorted(rows, key=lambda row: task.size(row.item))
    for start in range(0, len(ordered), most):
        yield ordered[start : start + most]


def _collect(results: Mapping[int, Result | RequestError], lone: bool) -> Answer | RequestError:
    """Put a call's results in order; one of its items in error is an error of the call."""
    values, cut = [], {}
    for place in sorted(results):
        result = results[place]
        if isinstance(result, RequestError):
            return result
        values.append(result.value)
        if result.truncated:
            cut[place] = result.truncated
    return Answer(values, cut, lone)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _reason(error: Exception) -> RequestError:
    """What to tell the sender of a row that fails alone."""
    # torch raises OutOfMemoryError on an accelerator and a RuntimeError of its allocator on the CPU
    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
    if out_of_memory:
        return OutOfMemory("This input alone needs more memory than the server has: send a shorter one.")
    return report(error)
