"""What plain Captum says each token did for an answer: one text at a time, no padding, every step on its own.

The number explained is the log-odds of what was said, of a generated token its log-probability. The baseline has the
padding token's embedding in the place of each token of the text; special tokens stay. The path between the two is
straight, and only embeddings move on it: ids, and so positions, token types and the mask, are those of the text.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients, LLMGradientAttribution, TextTokenInput
from torch import Tensor, nn
from transformers import AutoTokenizer

from tests.models import HEADS

STEPS = 500
AT_ONCE = 50  # steps in one pass: all of them would need a gigabyte for each megabyte of one


@dataclass(frozen=True)
class Explained:
    """One row as the model is given it. part: 0 or 1, the text that a token is of, and None for a special one."""

    tokens: list[str]
    part: list[int | None]
    offsets: list[tuple[int, int]]  # characters in the text of the part
    attributions: Tensor  # [tokens], summed over the embedding
    score: float
    baseline: float

    @property
    def top(self) -> str:
        """The token that did most, for or against."""
        return self.tokens[int(self.attributions.abs().argmax())]


# --- the answers, by mode


def classification(
    folder: Path, text: str, label: int, function: str = "softmax", pair: str | None = None, **how
) -> Explained:
    """function: softmax, sigmoid or none."""
    row = Row(folder, "sequence_classification", text, pair)

    def score(outputs) -> Tensor:
        logits = outputs.logits
        return log_odds(logits, [label]) if function == "softmax" else logits[:, label]

    return row.explained(score, **how)


def entity(folder: Path, text: str, kind: str, tokens: Sequence[int], **how) -> Explained:
    """kind: PER stands for B-PER and I-PER. tokens: their places in the text, special ones not counted."""
    row = Row(folder, "token_classification", text)
    columns = [row.columns(0)[token] for token in tokens]
    labels = [i for i, name in row.model.config.id2label.items() if name.removeprefix("B-").removeprefix("I-") == kind]
    return row.explained(lambda outputs: log_odds(outputs.logits[:, columns], labels).mean(dim=1), **how)


def answer(folder: Path, question: str, context: str, side: str, token: int, **how) -> Explained:
    """side: start or end. token: its place among the tokens of the context; the context has to fit into one window.

    Part 0 is the question and part 1 the context, also of XLNet, which reads the context first.
    """
    last = needs_question_last(folder)
    row = Row(folder, "question_answering", *((context, question) if last else (question, context)))
    columns = row.columns(0 if last else 1)
    found = row.explained(lambda outputs: log_odds(outputs[f"{side}_logits"][:, columns], [token]), **how)
    part = [1 - number if last and number is not None else number for number in found.part]
    return Explained(found.tokens, part, found.offsets, found.attributions, found.score, found.baseline)


def generated(folder: Path, prompt: str, new: Sequence[int], place: int, **how) -> Explained:
    """new: ids of the answer's tokens; the one at `place` is explained, given the prompt and those before it.

    Only the prompt's tokens are returned, as only they move.
    """
    row = Row(folder, "text_generation", prompt)
    row.append(new[:place])
    return row.explained(lambda outputs: outputs.logits[:, -1].log_softmax(dim=-1)[:, new[place]], **how)


def generated_by_captum(folder: Path, prompt: str, new: Sequence[int], steps: int = STEPS) -> Tensor:
    """[new tokens, tokens of the prompt], all of it Captum's own doing; the prompt may have no special tokens."""
    model, tokenizer = loaded(folder, "text_generation")
    method = LLMGradientAttribution(LayerIntegratedGradients(model, model.get_input_embeddings()), tokenizer)
    prompted = TextTokenInput(prompt, tokenizer, baselines=neutral(tokenizer))
    found = method.attribute(prompted, torch.tensor(new), n_steps=steps, internal_batch_size=AT_ONCE)
    return found.token_attr.double()


# --- the numbers that are explained


def log_odds(logits: Tensor, chosen: Sequence[int]) -> Tensor:
    """Of the chosen outputs together against all others, [..., outputs] to [...]."""
    others = [i for i in range(logits.shape[-1]) if i not in chosen]
    return logits[..., list(chosen)].logsumexp(dim=-1) - logits[..., others].logsumexp(dim=-1)


# --- the path


@cache
def loaded(folder: Path, head: str):
    model, tokenizer = HEADS[head].from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)  # else a layer's output has no gradient to ask for
    if model.config.pad_token_id is None:  # GPT-2's classifier takes several steps at once only with one
        model.config.pad_token_id = tokenizer.eos_token_id
    return model, tokenizer


def needs_question_last(folder: Path) -> bool:
    return loaded(folder, "question_answering")[0].config.model_type == "xlnet"


def neutral(tokenizer) -> int:
    """The token that stands for nothing."""
    choices = (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.eos_token_id)
    return next(token for token in choices if token is not None)


class Row:
    """One text, or pair, as the model takes it."""

    def __init__(self, folder: Path, head: str, *texts: str | None) -> None:
        self.model, self.tokenizer = loaded(folder, head)
        made = self.tokenizer(*(text for text in texts if text is not None), truncation=True, return_tensors="pt")
        (encoding,) = made.encodings
        self.tensors = dict(made)
        self.part = encoding.sequence_ids
        self.offsets = encoding.offsets

    def columns(self, part: int) -> list[int]:
        return [i for i, number in enumerate(self.part) if number == part]

    def append(self, ids: Sequence[int]) -> None:
        """Add tokens at the end, that do not move."""
        added = {"input_ids": torch.tensor([list(ids)], dtype=torch.long), "attention_mask": torch.ones(1, len(ids))}
        self.tensors = {
            name: torch.cat([tensor, added[name].to(tensor.dtype)], dim=1) for name, tensor in self.tensors.items()
        }

    def explained(self, score: Callable, steps: int = STEPS, by_layer: bool | None = None) -> Explained:
        """by_layer: LayerIntegratedGradients, which is right wherever the embedding layer runs once, rows first."""
        ids = self.tensors["input_ids"]
        moves = torch.tensor([number is not None for number in self.part] + [False] * (ids.shape[1] - len(self.part)))
        nothing = torch.where(moves, neutral(self.tokenizer), ids)
        if by_layer is None:
            by_layer = self.model.config.model_type not in ("t5", "xlnet")
        embed = self.model.get_input_embeddings()
        start, end = embed(nothing).detach(), embed(ids).detach()
        how = {"n_steps": steps, "internal_batch_size": AT_ONCE}

        def at(embeddings: Tensor) -> Tensor:
            with placed(self.model, embeddings):
                return score(self.model(**self.expanded(len(embeddings))))

        def given(row: Tensor) -> Tensor:
            return score(self.model(**self.expanded(len(row)) | {"input_ids": row}))

        if by_layer:
            parts = LayerIntegratedGradients(given, embed).attribute(ids, nothing, **how)
        else:
            parts = IntegratedGradients(at).attribute(end, start, **how)
        with torch.no_grad():
            return Explained(
                tokens=self.tokenizer.convert_ids_to_tokens(ids[0].tolist())[: len(self.part)],
                part=list(self.part),
                offsets=list(self.offsets),
                attributions=parts[0].detach().double().sum(dim=-1)[: len(self.part)],
                score=float(score(self.model(**self.tensors))),
                baseline=float(at(start)),
            )

    def expanded(self, rows: int) -> dict[str, Tensor]:
        return {name: tensor.expand(rows, -1) for name, tensor in self.tensors.items()}


@contextmanager
def placed(model: nn.Module, embeddings: Tensor):
    """Put `embeddings` [rows, tokens, size] in the place of what the model's embedding layers give."""
    kind = model.config.model_type

    def put(layer, inputs, output):
        return embeddings.transpose(0, 1) if kind == "xlnet" else embeddings

    def put_shifted(layer, inputs, output):
        return torch.cat([output[:, :1], embeddings[:, :-1]], dim=1)

    if kind == "t5":  # its decoder reads the same text, behind a token that begins it
        layers = {name: layer for name, layer in model.named_modules() if name.endswith("embed_tokens")}
        hooks = [
            layer.register_forward_hook(put_shifted if "decoder" in name else put) for name, layer in layers.items()
        ]
    else:
        hooks = [model.get_input_embeddings().register_forward_hook(put)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
