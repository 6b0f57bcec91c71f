"""One row's fault stays its own: what fails is tried again in halves, until the row at fault stands alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from hfserve.errors import OutOfMemory, RequestError, report
from hfserve.tasks.base import Refused


class Blamable(Protocol):
    """Something of a request that can be at fault."""

    def blame(self, error: RequestError) -> RequestError:
        """Name this in an error that names nothing."""
        ...


class Halve(Exception):
    """Raised by a step that several rows are too much for."""


R = TypeVar("R", bound=Blamable)
T = TypeVar("T")


def isolated_rows(step: Callable[[Sequence[R]], Sequence[T]], rows: Sequence[R]) -> list[T | RequestError]:
    """Return a result of `step(rows)` for each row, or that row's error.

    `step` returns one result a row. A RequestError that it raises is that of all rows, Refused names those it is of,
    and after anything else the rows are tried again in halves.
    """
    if not rows:
        return []
    try:
        return list(step(rows))
    except Refused as refused:
        errors = {i: rows[i].blame(error) for i, error in refused.errors.items()}
    except RequestError as error:
        errors = {i: row.blame(error) for i, row in enumerate(rows)}
    except torch.AcceleratorError as error:
        report(error)  # the device is lost to this process, and each later request would fail: end, to be restarted
        raise SystemExit("The accelerator failed; this worker ends so that a new one can take its place.") from error
    except Exception as error:
        errors = {0: rows[0].blame(_reason(error))} if len(rows) == 1 else {}
    # outside of the except clauses: there the exception would keep the failed pass's tensors in memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if errors:
        rest = iter(isolated_rows(step, [row for i, row in enumerate(rows) if i not in errors]))
        return [errors[i] if i in errors else next(rest) for i in range(len(rows))]
    half = len(rows) // 2
    return isolated_rows(step, rows[:half]) + isolated_rows(step, rows[half:])


def _reason(error: Exception) -> RequestError:
    """What to tell the sender of a row that fails alone."""
    # torch raises OutOfMemoryError on an accelerator and a RuntimeError of its allocator on the CPU
    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
    if out_of_memory:
        return OutOfMemory("This input alone needs more memory than the server has: send a shorter one.")
    return report(error)
