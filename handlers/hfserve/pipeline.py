"""The data path of one batch of calls: parse -> encode -> forward -> decode, each row alone in its faults.

Calls with equal parameters share forward passes. The rows of a pass are of like length, because every row is padded to
the longest one of its pass. For explanations, what would be decoded becomes targets, which `explain` traces back.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hfserve.config import Config
from hfserve.engines import engine_class, engines_for
from hfserve.engines.base import Engine
from hfserve.errors import ConfigError, RequestError, TooLarge, TooSlow, isolated
from hfserve.explain import MOST_SHARES, TOO_MUCH, Attribution, Explainer, record
from hfserve.forms import Answer, Call
from hfserve.isolation import Halve, isolated_rows
from hfserve.pace import Paced
from hfserve.proof import TOLERANCE, replay
from hfserve.reading import Asked, Reader, Row
from hfserve.tasks import task_class
from hfserve.tasks.base import Batch, Json, Refused, Task, Truncation
from hfserve.views.explained import Explained

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What the model says of one row."""

    value: Any
    truncated: Truncation | None


class Pipeline:
    """A task and an engine, ready to answer. It needs no server: `Pipeline.load(...).answer([Call("I loved it.")])`."""

    def __init__(self, task: Task, engine: Engine, config: Config) -> None:
        self.task = task
        self.engine = engine
        self.config = config
        self.reader = Reader(task, config.handler)
        self.explainer: Explainer | None = None  # made when it is first asked for: it may take time and memory
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

    def deadline(self) -> float:
        """Return when a batch that begins now has to be done, in seconds of the monotonic clock."""
        return time.monotonic() + self.config.time_budget

    def answer(self, calls: Sequence[Call], deadline: float | None = None) -> list[Answer | RequestError]:
        """Answer each call, in order; a call's error is its own."""
        return self._each(calls, self.reader.read, self._predict, deadline)

    def explain(self, calls: Sequence[Call], deadline: float | None = None) -> list[Answer | RequestError]:
        """Explain to each call, in order, what `answer` answers it; the results are `Explained`."""
        return self._each(calls, self.reader.read_why, self._explain, deadline)

    def _each(
        self,
        calls: Sequence[Call],
        read: Callable[[int, Call], Asked],
        work: Callable[[Sequence[Row], Any, float], Sequence[Result | RequestError]],
        deadline: float | None,
    ) -> list[Answer | RequestError]:
        """Read every call, do the work of those with equal parameters together, and collect what each call is due."""
        deadline = self.deadline() if deadline is None else deadline
        rows: dict[Hashable, list[Row]] = defaultdict(list)  # by parameters
        found: list[dict[int, Result | RequestError] | RequestError] = []
        lone: list[bool] = []
        for index, call in enumerate(calls):
            asked = isolated(read, index, call)
            found.append(asked if isinstance(asked, RequestError) else {})
            lone.append(isinstance(asked, Asked) and asked.lone)
            if isinstance(asked, Asked):
                rows[asked.params] += asked.rows
        for params, group in rows.items():
            for row, result in zip(group, work(group, params, deadline), strict=True):
                found[row.call][row.place] = result  # type: ignore[index]  # a call with rows has a dict
        return [
            results if isinstance(results, RequestError) else _collect(results, alone)
            for results, alone in zip(found, lone, strict=True)
        ]

    def _predict(self, rows: Sequence[Row], params: Any, deadline: float) -> list[Result | RequestError]:  # noqa: ANN401
        return self._in_passes(
            rows, lambda part: list(self._pass([row.item for row in part], params, deadline)), deadline
        )

    def _explain(self, rows: Sequence[Row], params: Any, deadline: float) -> list[Result | RequestError]:  # noqa: ANN401
        """Find what there is to explain of each row, and explain it, of all rows together."""
        own, how = params
        if self.explainer is None:
            explainer = isolated(lambda: Explainer(self.engine.plain(), self.task))
            if isinstance(explainer, RequestError):
                return [row.blame(explainer) for row in rows]
            self.explainer = explainer
        found = _bounded(rows, self._in_passes(rows, lambda part: self._targets(part, own, deadline), deadline))
        targets = [target for one in found if not isinstance(one, RequestError) for target in one.value]
        explained = iter(self.explainer.explain(targets, how, deadline))
        return [
            one if isinstance(one, RequestError) else self._explained(row, one, explained, how.method)
            for row, one in zip(rows, found, strict=True)
        ]

    def _targets(self, rows: Sequence[Row], params: Any, deadline: float) -> list[Result]:  # noqa: ANN401
        """One pass: the targets of each row."""
        batch = self.task.encode([row.item for row in rows], params)
        model = Paced(self.engine, self.config.handler.max_rows, deadline)
        return _results(self.task.targets(model, batch, params, [row.target for row in rows]), batch)

    def _explained(
        self, row: Row, found: Result, explained: Iterator[Attribution | RequestError], method: str
    ) -> Result | RequestError:
        """Put the attributions of a row's targets together; one in error is an error of the row."""
        texts = self.task.texts(row.item)
        records = []
        error = None
        for target in found.value:
            one = next(explained)
            if isinstance(one, RequestError):
                error = row.blame(one)
            else:
                records.append(record(target, texts, one, method, found.truncated))
        return error or Result(Explained(texts, records, lone=not self.task.several), None)

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

    def _in_passes(
        self, rows: Sequence[Row], step: Callable[[Sequence[Row]], list[Result]], deadline: float
    ) -> list[Result | RequestError]:
        """Run a step on passes of rows of like size, each row alone in its faults; the results are in order."""

        def timed(part: Sequence[Row]) -> list[Result]:
            left = deadline - time.monotonic()
            if left < 0:
                raise TooSlow("The batch took its whole time before this input's turn: try again, or send less.")
            if len(part) > 1 and self.pace * self._size([row.item for row in part]) > left:
                raise Halve
            return step(part)

        # a row is padded to the longest of its pass
        order = sorted(range(len(rows)), key=lambda i: self.task.size(rows[i].item))
        most = self.config.handler.max_rows
        found: dict[int, Result | RequestError] = {}
        for start in range(0, len(order), most):
            part = order[start : start + most]
            found |= zip(part, isolated_rows(timed, [rows[i] for i in part]), strict=True)
        return [found[i] for i in range(len(rows))]

    def _size(self, items: Sequence[Any]) -> int:
        return sum(map(self.task.size, items))

    def _pass(self, items: Sequence[Any], params: Any, deadline: float = math.inf) -> list[Result]:  # noqa: ANN401
        """One pass: a result for each item, in order."""
        batch = self.task.encode(items, params)
        model = Paced(self.engine, self.config.handler.max_rows, deadline)
        return _results(self.task.decode(self.task.forward(model, batch, params), batch, params), batch)


def _results(values: Sequence[Any], batch: Batch) -> list[Result]:
    """Return the values of a batch's items, each with what was cut from it."""
    cut: Mapping[int, Truncation] = batch.truncated or {}
    return [Result(value, cut.get(i)) for i, value in enumerate(values)]


def _bounded(rows: Sequence[Row], found: Sequence[Result | RequestError]) -> list[Result | RequestError]:
    """Refuse the calls whose explanations would be too much for an answer."""
    shares: dict[int, int] = defaultdict(int)  # by call
    for row, one in zip(rows, found, strict=True):
        if isinstance(one, Result):
            shares[row.call] += sum(len(target.pieces) for target in one.value)
    return [
        row.blame(TooLarge(TOO_MUCH)) if shares[row.call] > MOST_SHARES else one
        for row, one in zip(rows, found, strict=True)
    ]


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
