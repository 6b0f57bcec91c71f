"""Low-rank training (LoRA, arXiv:2106.09685) of a small encoder on the CPU, and the delta that is shipped of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import transformers
from rich.progress import track
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from scripts.console import console
from scripts.starter import ENCODER_DIR

TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]

Example = TypeVar("Example")


@dataclass(frozen=True)
class Recipe:
    """How a starter is trained. `head` is trained whole: it is small and new."""

    auto_class: str
    labels: Sequence[str]
    head: Sequence[str]
    epochs: int = 6
    rank: int = 16
    learning_rate: float = 7e-4
    dropout: float = 0.0
    batch: int = 2048  # tokens, padding included: what two cores work through in a second or two


class Lesson(Protocol[Example]):
    """What a mode teaches: the examples of an epoch, how long each is, and how wrong a model is on a batch of them."""

    def examples(self, epoch: int, shuffle: random.Random) -> list[Example]:
        """Return the examples of an epoch, drawn anew where they are drawn."""
        ...

    def length(self, example: Example) -> int:
        """Return about how many tokens an example has."""
        ...

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """Return the mean loss of a batch."""
        ...


def train(
    recipe: Recipe, lesson: Lesson[Example], epochs: int, seed: int, after: Callable[[nn.Module, int], None]
) -> nn.Module:
    """Train a low-rank delta and the head; `after(model, epoch)` is called after each epoch."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    shuffle = random.Random(seed)  # noqa: S311  # for an order, not for a secret
    model: Any = getattr(transformers, recipe.auto_class).from_pretrained(
        ENCODER_DIR,
        num_labels=len(recipe.labels),
        hidden_dropout_prob=recipe.dropout,
        attention_probs_dropout_prob=0.0,  # costs much on a CPU and helps little
    )
    options = {"lora_alpha": 2 * recipe.rank, "target_modules": TARGETS, "modules_to_save": list(recipe.head)}
    model = get_peft_model(model, LoraConfig(r=recipe.rank, **options))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.01)
    steps = epochs * len(list(batches(lesson, recipe.batch, 0, random.Random(0))))  # noqa: S311
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    for epoch in range(epochs):
        model.train()
        for rows in track(
            list(batches(lesson, recipe.batch, epoch, shuffle)), f"epoch {epoch + 1} of {epochs}", console=console
        ):
            with torch.autocast("cpu", torch.bfloat16):
                loss = lesson.loss(model, rows)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        model.eval()
        after(model, epoch)
    return model  # type: ignore[no-any-return]


def batches(lesson: Lesson[Example], tokens: int, epoch: int, shuffle: random.Random) -> Iterator[list[Example]]:
    """Yield shuffled batches of like length: little padding, so that training costs half."""
    examples = lesson.examples(epoch, shuffle)
    order = sorted(examples, key=lambda row: lesson.length(row) + shuffle.uniform(0, 6))
    groups: list[list[Example]] = [[]]
    for example in order:
        if groups[-1] and lesson.length(example) * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(example)
    shuffle.shuffle(groups)
    yield from groups


def delta(model: Any) -> dict[str, Tensor]:  # noqa: ANN401  # a peft model
    """Return what was trained, as fp16: `<weight>.A` [rank, in], `<weight>.B` [out, rank] (scaled); the head whole."""
    found: dict[str, Tensor] = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            scale = module.scaling["default"]
            found[f"{name}.weight.A"] = module.lora_A["default"].weight
            found[f"{name}.weight.B"] = module.lora_B["default"].weight * scale
        if hasattr(module, "modules_to_save"):
            for part, weight in module.modules_to_save["default"].named_parameters():
                found[f"{name}.{part}"] = weight
    return {name: weight.detach().half().contiguous() for name, weight in sorted(found.items())}
