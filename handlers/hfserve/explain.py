"""Why the model said so: the share of each token in a score of the model, by Captum. It knows no task.

A task says what there is to explain as targets, each a row of the model's inputs and a score of its outputs. Rows of
several targets, and several steps of each, go through the model together, as many as fit into memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn

from hfserve.embedded import LATE, Embedded, Rows
from hfserve.errors import RequestError, TooSlow, Unprocessable
from hfserve.isolation import isolated_rows
from hfserve.tasks.base import Json, Target, Task, Truncation, choice, count, number

FIRST_STEPS = 24  # by Gauss-Legendre, enough for most texts; where it is not they are doubled
MOST_STEPS = 1000
MOST_SHARES = 50_000  # of tokens, in the answer to a request; TorchServe loses a worker that answers more than it takes
MEMORY = 0.25  # of what is free, for what a pass keeps for its gradients
SLICE = 0.02  # of the time left, for a pass: time is looked at between passes
FULL = 0.25  # seconds of a pass after which what it costs to begin one is nothing beside it; more only adds padding
LEAST_TOKENS = 1024  # of a pass, where time and memory allow it
NO_NUMBER = "The model gives no number for this input, so that nothing can be explained: send another."
TOO_MUCH = (
    f"There is too much to explain for one answer, {MOST_SHARES} scores of tokens at most: ask for less at a time."
)


@dataclass(frozen=True)
class ExplanationParams:
    """What a request may ask for, beside what the task takes.

    method: layer_integrated_gradients, input_x_gradient or occlusion.
    n_steps: points on the way from baseline to input; null for as many as the tolerance takes.
    tolerance: by how much the shares may miss the score that they should add up to, relative to the sum of their sizes.
    """

    method: str = "layer_integrated_gradients"
    n_steps: int | None = None
    tolerance: float | None = 0.02

    def __post_init__(self) -> None:
        choice("method", self.method, list(METHODS))
        count("n_steps", self.n_steps, or_null="as many as the tolerance takes", most=MOST_STEPS)
        object.__setattr__(self, "tolerance", number("tolerance", self.tolerance, 1e-6, 1) or 0.02)


@dataclass(frozen=True)
class Attribution:
    """The shares [pieces] of a target's tokens in its score, and the score itself of the input and of the baseline.

    steps and converged are None where the method knows no steps.
    """

    shares: Sequence[float]
    input_score: float
    baseline_score: float
    steps: int | None = None
    converged: bool | None = None

    @property
    def delta(self) -> float:
        """By how much the shares miss what integrated gradients add up to."""
        return sum(self.shares) - (self.input_score - self.baseline_score)

    def within(self, tolerance: float) -> bool:
        """Whether the shares add up."""
        return abs(self.delta) <= tolerance * sum(map(abs, self.shares))

    @property
    def finite(self) -> bool:
        """Whether all of it are numbers."""
        return math.isfinite(self.delta)


def integrated_gradients(rows: Rows, steps: int, most: int) -> Tensor:
    """Sundararajan, Taly and Yan, arXiv:1703.01365, at the layer of the embeddings: shares [rows, tokens]."""
    from captum.attr import IntegratedGradients

    found: Tensor = IntegratedGradients(rows.scores).attribute(
        rows.inputs,
        rows.baselines,
        additional_forward_args=(rows.every,),
        n_steps=steps,
        internal_batch_size=max(most, len(rows.every)),
    )
    return found.sum(dim=-1)


def input_x_gradient(rows: Rows, steps: int, most: int) -> Tensor:
    """Shrikumar and others, arXiv:1605.01713: shares [rows, tokens]."""
    from captum.attr import InputXGradient

    inputs = rows.inputs.clone().requires_grad_()
    found: Tensor = InputXGradient(rows.scores).attribute(inputs, additional_forward_args=(rows.every,))
    return found.detach().sum(dim=-1)


def occlusion(rows: Rows, steps: int, most: int) -> Tensor:
    """Zeiler and Fergus, arXiv:1311.2901: what the score loses when a token gives way to the baseline's."""
    from captum.attr import Occlusion

    found: Tensor = Occlusion(rows.scores).attribute(
        rows.inputs,
        sliding_window_shapes=(1, rows.inputs.shape[2]),
        baselines=rows.baselines,
        additional_forward_args=(rows.every,),
        perturbations_per_eval=max(1, most // len(rows.every)),
    )
    return found[:, :, 0]  # each number of a token's vector is given what the whole of it is worth


class Method(NamedTuple):
    """How shares are found: a run of Captum, and how many rows of its own tokens a target becomes in it.

    stepped: whether more steps bring the shares nearer to what they add up to.
    """

    run: Callable[[Rows, int, int], Tensor]
    rows: Callable[[int, int], int]  # of steps and tokens
    stepped: bool = False


METHODS = {
    "layer_integrated_gradients": Method(integrated_gradients, lambda steps, tokens: steps, stepped=True),
    "input_x_gradient": Method(input_x_gradient, lambda steps, tokens: 1),
    "occlusion": Method(occlusion, lambda steps, tokens: tokens),
}


class Work:
    """A target, and what is known of it so far."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.tokens = len(target.row["input_ids"])
        self.found: Attribution | RequestError = TooSlow(LATE)
        self.gaps: list[float] = []  # of each round

    @property
    def open(self) -> bool:
        """Whether it has not come near enough to what its shares add up to."""
        return isinstance(self.found, Attribution) and self.found.converged is False

    @property
    def stuck(self) -> bool:
        """Whether two doublings of its steps in turn did not halve the gap."""
        return len(self.gaps) > 2 and min(self.gaps[-2:]) > self.gaps[-3] / 2

    def take(self, found: Attribution | RequestError) -> None:
        """Keep what was found, unless it is that there was no time to better what is known."""
        if isinstance(found, Attribution):
            self.gaps.append(abs(found.delta))
        if not (isinstance(found, TooSlow) and isinstance(self.found, Attribution)):
            self.found = found

    def blame(self, error: RequestError) -> RequestError:
        """See `Blamable`: an item may have many targets, so that their field says nothing."""
        return error


class Explainer:
    """Explains scores of one model, of which it only calls `forward`."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        try:
            import captum.attr  # noqa: F401  # half a second that only who asks for it pays
        except ImportError as error:
            raise Unprocessable("Explanations need the package captum, which this server lacks.") from error
        self.model = Embedded(model, task)
        self.longest, self.bytes = 0, 0.0  # tokens of the longest row that was weighed, and what each takes in a pass
        self.pace = 0.0  # seconds that a token took when it was last looked

    def explain(
        self, targets: Sequence[Target], params: ExplanationParams, deadline: float
    ) -> list[Attribution | RequestError]:
        """Return the attribution of each target, in order; TooSlow for those that `deadline` leaves no time for.

        deadline: seconds of the monotonic clock.
        """
        waiting = every = sorted(map(Work, targets), key=lambda work: work.tokens)
        steps = params.n_steps or FIRST_STEPS
        while waiting:
            for chunk in self._chunks(waiting, METHODS[params.method], steps, deadline):
                self._round(chunk, params, steps, deadline)
            steps *= 2
            more = params.n_steps is None and steps <= MOST_STEPS
            # what bf16 rounds off is no matter of steps; in fp32 a gap may well shrink late
            waiting = [work for work in waiting if work.open and more and not (work.stuck and self.model.rounds)]
        found = {id(work.target): work.found for work in every}
        return [found[id(target)] for target in targets]

    def _round(self, chunk: Sequence[Work], params: ExplanationParams, steps: int, deadline: float) -> None:
        """Explain a chunk with some number of steps; to better what is known, only if there is time for it."""
        tokens = sum(METHODS[params.method].rows(steps, work.tokens) * work.tokens for work in chunk)
        start = time.monotonic()
        expected = 1.2 * self.pace * tokens if chunk[0].open else 0.0
        if start + expected > deadline:
            return
        found = isolated_rows(lambda part: self._attribute(part, params, steps, deadline), chunk)
        for work, result in zip(chunk, found, strict=True):
            work.take(result)
        if not any(isinstance(result, RequestError) for result in found):  # else not all was done
            self.pace = (time.monotonic() - start) / tokens

    def _attribute(
        self, chunk: Sequence[Work], params: ExplanationParams, steps: int, deadline: float
    ) -> list[Attribution | RequestError]:
        """Run Captum over a chunk."""
        self._weigh(chunk[-1], deadline)
        rows = self.model.rows([work.target for work in chunk], deadline)
        method = METHODS[params.method]
        ends = list(zip(rows.input_scores, rows.baseline_scores, strict=True))  # first: later the time may be up
        shares = method.run(rows, steps, self._rows_at_once(chunk[-1], deadline)).cpu()
        found: list[Attribution | RequestError] = []
        for i, work in enumerate(chunk):
            own = shares[i, work.target.columns].tolist()
            result = Attribution(own, *ends[i])
            if method.stepped:
                result = replace(result, steps=steps, converged=result.within(params.tolerance or 0))
            found.append(result if result.finite else Unprocessable(NO_NUMBER))
        return found

    def _chunks(self, waiting: Sequence[Work], method: Method, steps: int, deadline: float) -> Iterator[list[Work]]:
        """Cut work, the shortest first, into chunks that fill a pass, or of one target that fills several."""
        chunk: list[Work] = []
        for work in waiting:
            rows = (len(chunk) + 1) * method.rows(steps, work.tokens)
            if chunk and rows > self._rows_at_once(work, deadline):
                yield chunk
                chunk = []
            chunk.append(work)
        yield chunk

    def _rows_at_once(self, longest: Work, deadline: float) -> int:
        """Return how many rows of a length fit into one pass, by memory and time: 1 at least."""
        if not self.longest:
            return max(1, LEAST_TOKENS // longest.tokens)
        left = deadline - time.monotonic()
        by_memory = MEMORY * _free_memory(self.model.device) / self.bytes
        tokens = min(by_memory, SLICE * left / self.pace, max(LEAST_TOKENS, FULL / self.pace))
        return max(1, int(tokens / longest.tokens))

    def _weigh(self, longest: Work, deadline: float) -> None:
        """Try one row, unless a longer one was: a token of a shorter row takes less, as attention is quadratic."""
        if longest.tokens <= self.longest:
            return
        if not self.longest:
            self.model.bytes_kept(longest.target, deadline)  # the first time is slower than all others
        start = time.monotonic()
        self.bytes = self.model.bytes_kept(longest.target, deadline) / longest.tokens
        self.pace = (time.monotonic() - start) / longest.tokens
        self.longest = longest.tokens


def _free_memory(device: torch.device) -> int:
    """Return the bytes that can be had on a device."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def record(target: Target, texts: dict[str, str], found: Attribution, method: str, cut: Truncation | None) -> Json:
    """Return the answer that an attribution is: scores with their places in the texts, the squares of which add to 1.

    texts: of the item, by name; cut: what the model was not given of it. A token's score times `norm` is its share in
    `input_score` - `baseline_score`.
    """
    norm = math.sqrt(sum(share * share for share in found.shares))
    scores = [share / norm if norm else 0.0 for share in found.shares]
    tokens = [
        _place(texts, piece.field, piece.start, piece.end, score)
        for piece, score in zip(target.pieces, scores, strict=True)
    ]
    words = []
    for _, group in groupby(zip(target.pieces, scores, strict=True), key=lambda pair: pair[0].word):
        pairs = list(group)
        seen = [piece for piece, _ in pairs if piece.start < piece.end] or [pairs[0][0]]
        words.append(_place(texts, seen[0].field, seen[0].start, seen[-1].end, sum(score for _, score in pairs)))
    chance = {"score": target.chance(found.input_score)} if target.chance else {}
    return {
        "target": target.name,
        "prediction": target.prediction | chance,
        "method": method,
        "tokens": tokens,
        "words": words,
        "input_score": found.input_score,
        "baseline_score": found.baseline_score,
        "norm": norm,
        "convergence_delta": found.delta,
        "n_steps": found.steps,
        "converged": found.converged,
        **({"truncated": cut.to_json()} if cut else {}),
    }


def _place(texts: dict[str, str], field: str, start: int, end: int, score: float) -> dict[str, Json]:
    of = {"field": field} if len(texts) > 1 else {}
    return {"text": texts[field][start:end], "start": start, "end": end, "score": score, **of}
