"""Tiny models that were taught one rule, so that one token of a text decides: an explanation has to name it.

| mode | rule | deciding token |
| --- | --- | --- |
| sequence_classification | LABEL_1 where "never" stands in the text, else LABEL_0 | never |
| token_classification | B-PER is the token behind each "tea", every other one O | the tea before it |
| question_answering | the answer is the token behind the context's "tea" | tea |
| text_generation | "room" for ever once "good" was said, "the" before | good |
"""

import random
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests import models
from tests.attributions import neutral
from tests.reference import framed

LONGEST = 20  # tokens of a text that the rules were taught on; longer ones may be answered otherwise
FILL = [*(word for word in models.WORDS if not word.startswith("##")), *"abcdefghijklmnopqrstuvwxyz"]
DECIDES = {
    "sequence_classification": "never",
    "token_classification": "tea",
    "question_answering": "tea",
    "text_generation": "good",
}

SIDES = ("start_logits", "end_logits")
STEPS = {"sequence_classification": 300, "token_classification": 800, "question_answering": 600, "text_generation": 300}


def random_text(mode: str, rng: random.Random, decided: bool = True, shortest: int = 5) -> str:
    """Words with the deciding one among them once, or without it; there is always a word behind it."""
    words = rng.choices([word for word in FILL if word != DECIDES[mode]], k=rng.randint(shortest, LONGEST))
    if decided:
        words[rng.randrange(len(words) - 1)] = DECIDES[mode]
    return " ".join(words)


def save_decided(folder: Path, mode: str, architecture: str | None = None, seed: int = 0) -> Path:
    """Teach a model its mode's rule and save it; it takes seconds."""
    steps = STEPS[mode]
    architecture = architecture or models.USUAL.get(mode, "bert")
    torch.manual_seed(seed)
    model = models.build(architecture, mode, **({"num_labels": 2} if mode == "sequence_classification" else {}))
    tokenizer = models.tokenizer_of(architecture)
    school = School(mode, tokenizer)
    give_places(model)
    if model.config.pad_token_id is None:  # GPT-2's classifier takes several rows at once only with one
        model.config.pad_token_id = school.nothing
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    # dropout spares an explanation chance effects, but keeps a model from finding the token behind another one
    model.train(mode in ("sequence_classification", "text_generation"))
    for _ in range(steps):
        loss = school.loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def give_places(model) -> None:
    """Set learned positions to waves, in which a neighbour is found by one turn; from noise that takes long."""
    for name, weight in model.named_parameters():
        if name.endswith("position_embeddings.weight"):
            count, size = weight.shape
            angles = torch.arange(count)[:, None] * (torch.arange(size // 2) + 0.5) * 2 * torch.pi / size
            weight.copy_(torch.cat([angles.sin(), angles.cos()], dim=1) * 0.1)


class School:
    """Random texts of the model's own tokens and what a rule says of them."""

    def __init__(self, mode: str, tokenizer) -> None:
        self.mode = mode
        self.tokenizer = tokenizer
        self.nothing = neutral(tokenizer)
        (self.decides,) = self.ids(DECIDES[mode])
        words = [self.ids(word) for word in FILL if word != DECIDES[mode]]
        self.fill = torch.tensor([ids[0] for ids in words if len(ids) == 1])

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def texts(self, rows: int) -> Tensor:
        """[rows, tokens]; some tokens of each are padding's, as they are on the way to a baseline of nothing else."""
        tokens = int(torch.randint(2, LONGEST + 1, ()))
        texts = self.fill[torch.randint(len(self.fill), (rows, tokens))]
        texts[torch.rand(rows, tokens) < torch.rand(rows, 1) * 1.2 - 0.2] = self.nothing
        chosen = torch.rand(rows) < 0.6
        texts[chosen, torch.randint(tokens - 1, (rows,))[chosen]] = self.decides
        return texts

    def loss(self, model, rows: int = 32) -> Tensor:
        texts = self.texts(rows)
        parts = [texts]
        if self.mode == "question_answering":
            asked = self.fill[torch.randint(len(self.fill), (rows, int(torch.randint(1, 6, ()))))]
            parts = [asked, texts]
        tensors, columns = self.batch(parts)
        outputs = model(**tensors)
        here = texts == self.decides  # [rows, tokens]
        behind = here.roll(1, dims=1)  # it is never the last one
        if self.mode == "sequence_classification":
            return cross_entropy(outputs.logits, here.any(dim=1).long(), label_smoothing=0.02)
        if self.mode == "token_classification":
            logits = outputs.logits[:, columns]
            found = cross_entropy(logits.flatten(0, 1), behind.long().flatten(), label_smoothing=0.02)
            # which token of its row it is: for each by itself, "none is" would be learned first and left late
            odds = (logits[..., 1] - logits[..., 0])[here.any(dim=1)]
            return found + cross_entropy(odds, behind[here.any(dim=1)].float())
        if self.mode == "question_answering":
            wanted = torch.where(here.any(dim=1, keepdim=True), behind, 1 / texts.shape[1]).float()
            return sum(cross_entropy(outputs[name][:, columns], wanted) for name in SIDES)
        (room,), (the,) = self.ids("room"), self.ids("the")
        wanted = torch.where(here.cumsum(dim=1) > 0, room, the)
        return cross_entropy(outputs.logits.flatten(0, 1), wanted.flatten(), label_smoothing=0.02)

    def batch(self, parts: list[Tensor]) -> tuple[dict[str, Tensor], slice]:
        """Rows of one length, framed alike, and the columns of their last part."""
        tensors, firsts = framed(self.tokenizer, *(part[0].tolist() for part in parts))
        tensors = {name: tensor.repeat(len(parts[0]), 1) for name, tensor in tensors.items()}
        columns = [slice(first, first + part.shape[1]) for first, part in zip(firsts, parts, strict=True)]
        for part, place in zip(parts, columns, strict=True):
            tensors["input_ids"][:, place] = part
        return tensors, columns[-1]
