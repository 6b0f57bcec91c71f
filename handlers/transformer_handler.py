"""The one class TorchServe sees. It loads what model-config.yaml describes and answers batches; start reading here."""

from __future__ import annotations

import sys

sys.dont_write_bytecode = True  # what is compiled into an archive's folder could stand in for its code unseen

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hfserve import wire
from hfserve.config import read_config
from hfserve.errors import InternalError, RequestError, report
from hfserve.forms import Answer, Call
from hfserve.pipeline import Pipeline
from hfserve.proof import check_files, libraries, read_claims


class TransformerHandler:
    """TorchServe calls `initialize` once in each worker, then `handle` with a batch of requests at a time."""

    def initialize(self, context: Any) -> None:  # noqa: ANN401  # ts.context.Context is untyped
        """Load the archive; the worker is READY when this returns. Raises ConfigError with what to change."""
        properties = context.system_properties
        model_dir = Path(properties["model_dir"])
        gpu = properties["gpu_id"] if torch.cuda.is_available() else None  # None also where deviceType is cpu
        device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        claims = read_claims(model_dir)
        check_files(model_dir, claims)
        self.pipeline = Pipeline.load(model_dir, read_config(model_dir / "model-config.yaml"), device)
        difference = self.pipeline.prove(model_dir, claims)
        self.model_name: str = context.model_name
        self.end: SystemExit | None = None  # why this worker has to end
        self.description = self.pipeline.describe() | _provenance(claims) | {"golden_difference": difference}

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[str]:  # noqa: ANN401
        """Answer a batch: one body text a row, status and headers set in the context; explanations after all else."""
        if self.end:
            raise self.end
        deadline = self.pipeline.deadline()
        calls = dict(enumerate(wire.parse(row, context.get_all_request_header(i)) for i, row in enumerate(data)))
        why = {i: call for i, call in calls.items() if isinstance(call, Call) and call.explain}
        rest = {i: call for i, call in calls.items() if i not in why}
        answers = iter(self.pipeline.answer([call for call in rest.values() if isinstance(call, Call)], deadline))
        bodies = {i: wire.send(self._respond(call, answers), context, i) for i, call in rest.items()}
        if why and rest:
            wire.send_first(bodies, context)
        answers = iter(self._explain(list(why.values()), deadline))
        bodies |= {i: wire.send(self._respond(call, answers), context, i) for i, call in why.items()}
        return [bodies[i] for i in calls]

    def _explain(self, calls: Sequence[Call], deadline: float) -> Sequence[Answer | RequestError]:
        """Explain, and raise nothing: those of the batch that are answered already must not be answered once more."""
        try:
            return self.pipeline.explain(calls, deadline)
        except SystemExit as end:  # the worker cannot go on, and ends with the next batch
            self.end = end
            return [InternalError("The server failed on this request; its log has the reason.")] * len(calls)
        except Exception as error:
            return [report(error)] * len(calls)

    def _respond(
        self, call: Call | wire.Describe | RequestError, answers: Iterator[Answer | RequestError]
    ) -> wire.Response:
        """Respond to one row; calls take their answers in order."""
        if isinstance(call, Call):
            return wire.render(call, next(answers), self.pipeline.task, self.model_name)
        if isinstance(call, wire.Describe):
            return wire.Response(wire.to_json(self.description))
        return wire.render_error(call)


def _provenance(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the archive comes from, and the libraries that run it now."""
    return {**{key: claims[key] for key in ("revision", "weights", "built_with")}, "libraries": libraries()}
