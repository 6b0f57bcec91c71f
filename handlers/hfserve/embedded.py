"""A model as a function of its token embeddings, which is what attributions are taken of.

A hook puts given embeddings in the place of what the model's embedding layer returns. All else that a model reads off
its token ids stays as it is: positions (RoBERTa), the last token (GPT-2's classifier), the end of the text (T5's).
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hfserve.errors import TooSlow, Unprocessable
from hfserve.tasks.base import Target, Task, Tensors

LATE = "The explanation took longer than a batch may: send a shorter text, ask for one target, or give fewer n_steps."


class Embedded:
    """Runs one model of transformers from embeddings. Raises Unprocessable for one that embeds no tokens."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.model = model
        self.task = task
        self.embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]  # every model has it
        # the same weights under other names, as in T5, whose encoder and decoder each have a layer of their own
        self.layers = [
            layer
            for layer in model.modules()
            if type(layer) is type(self.embedding) and layer.weight is self.embedding.weight
        ]
        weight = next(self.embedding.parameters())
        self.device = weight.device
        self.rounds = weight.dtype != torch.float32  # its scores are exact to a hundredth or so
        self.known = inspect.signature(model.forward).parameters
        given = {"use_cache": False, "return_dict": True, **task.scoring}
        self.options = {name: value for name, value in given.items() if name in self.known}

    def rows(self, targets: Sequence[Target], deadline: float) -> Rows:
        """Return the rows of targets, ready to be scored."""
        return Rows(self, targets, deadline)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings [rows, tokens, size] of token ids, in fp32."""
        with torch.no_grad():
            return self.embedding(ids).float()  # type: ignore[no-any-return]

    def run(self, embeddings: Tensor, inputs: Tensors) -> Tensors:
        """One forward pass, on the model's device: outputs by name, in fp32, with their gradient."""
        with self._replaced(inputs["input_ids"], embeddings):
            outputs = self.model.forward(**inputs, **self.options)
        return {name: value.float() for name, value in outputs.items() if isinstance(value, Tensor)}

    def bytes_kept(self, target: Target, deadline: float) -> int:
        """Take the gradient of a target's score, and return how many bytes its row takes until then."""
        weights = {parameter.data_ptr() for parameter in self.model.parameters()}
        kept = 0

        def weigh(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += 0 if tensor.data_ptr() in weights else tensor.nbytes
            return tensor

        rows = self.rows([target], deadline)
        with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
            inputs = rows.inputs.clone().requires_grad_()
            torch.autograd.grad(rows.scores(inputs, rows.every).sum(), inputs)
        return kept

    @contextmanager
    def _replaced(self, ids: Tensor, embeddings: Tensor) -> Iterator[None]:
        """Let the embedding layer return `embeddings` [rows, tokens, size] where it is given `ids` [rows, tokens]."""
        used = False

        def replace(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:  # noqa: ANN401
            nonlocal used
            found = aligned([*args, *kwargs.values()][0], ids, embeddings.to(output.dtype), output)
            used = used or found is not None
            return found

        hooks = [layer.register_forward_hook(replace, with_kwargs=True) for layer in self.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if not used:
            raise Unprocessable("This model has no explanations: its tokens do not go through get_input_embeddings().")


def aligned(seen: Tensor, ids: Tensor, embeddings: Tensor, output: Tensor) -> Tensor | None:
    """Return what stands for `embeddings` of `ids` where an embedding layer sees other ids made of them; None if none.

    XLNet sees them transposed. The decoder of T5's and BART's classifiers sees them moved on by one, behind a token of
    its own, whose embedding stays.
    """
    if seen.shape == ids.shape and torch.equal(seen, ids):
        return embeddings
    if seen.shape == ids.T.shape and torch.equal(seen, ids.T):
        return embeddings.transpose(0, 1)
    if seen.shape == ids.shape and torch.equal(seen[:, 1:], ids[:, :-1]):
        return torch.cat([output[:, :1], embeddings[:, :-1]], dim=1)
    return None


class Rows:
    """Rows of inputs and of baselines [rows, tokens, size] as embeddings, and the scores of whatever lies between them.

    A baseline is its input with the tokens that are traced replaced by `Task.baseline`.
    """

    def __init__(self, model: Embedded, targets: Sequence[Target], deadline: float) -> None:
        self.model = model
        self.targets = targets
        self.deadline = deadline
        stacked = model.task.stack([target.row for target in targets])
        self.tensors = {name: value.to(model.device) for name, value in stacked.items() if name in model.known}
        self.every = torch.arange(len(targets), device=model.device)
        ids = self.tensors["input_ids"]
        nothing = ids.clone()
        for row, target in enumerate(targets):
            nothing[row, target.columns] = model.task.baseline
        self.inputs, self.baselines = model.embed(ids), model.embed(nothing)

    @cached_property
    def input_scores(self) -> list[float]:
        """The scores of the inputs themselves. Raises TooSlow."""
        with torch.no_grad():
            return self.scores(self.inputs, self.every).tolist()

    @cached_property
    def baseline_scores(self) -> list[float]:
        """The scores of the baselines. Raises TooSlow."""
        with torch.no_grad():
            return self.scores(self.baselines, self.every).tolist()

    def scores(self, embeddings: Tensor, which: Tensor) -> Tensor:
        """Return the scores [n] of embeddings [n, tokens, size]; `which` [n] says of each whose it is.

        Raises TooSlow when the time is up.
        """
        if time.monotonic() > self.deadline:
            raise TooSlow(LATE)
        outputs = self.model.run(embeddings, {name: value[which] for name, value in self.tensors.items()})
        return self.model.task.scores(outputs, [self.targets[i] for i in which.tolist()])
