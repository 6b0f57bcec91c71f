"""The sentiment starter: labelled sentences."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from scripts.console import ARTIFACTS
from scripts.starter import ENCODER_DIR
from scripts.training.lora import Recipe

FOLDER = ARTIFACTS / "sequence_classification" / "starter"
LABELS = ["NEGATIVE", "POSITIVE"]
# the pooler is trained whole too: small, and it was never trained for this
RECIPE = Recipe("AutoModelForSequenceClassification", LABELS, ["pooler", "classifier"], batch=512, dropout=0.1)


class Sentence(NamedTuple):
    """A labelled sentence; `label` is its index in LABELS."""

    subject: str
    label: int
    text: str


def read(path: Path) -> list[Sentence]:
    """Read lines of `subject<TAB>LABEL<TAB>sentence`."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [Sentence(subject, LABELS.index(label), text) for subject, label, text in rows]


class Lesson:
    """Every sentence once in an epoch, but for those of the subjects that are left out."""

    def __init__(self, held_out: Sequence[str] = ()) -> None:
        self.sentences = [row for row in read(FOLDER / "sentences.tsv") if row.subject not in held_out]
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(ENCODER_DIR)

    def examples(self, epoch: int, shuffle: random.Random) -> list[Sentence]:
        """See `lora.Lesson`."""
        return self.sentences

    def length(self, example: Sentence) -> int:
        """See `lora.Lesson`."""
        return len(example.text) // 4 + 3

    def loss(self, model: nn.Module, examples: Sequence[Sentence]) -> Tensor:
        """Cross entropy of the label, smoothed: many sentences can be read both ways."""
        inputs = self.tokenizer([row.text for row in examples], padding=True, truncation=True, return_tensors="pt")
        logits: Tensor = model(**inputs).logits.float()
        return nn.functional.cross_entropy(logits, torch.tensor([row.label for row in examples]), label_smoothing=0.05)


def score(model: nn.Module, path: Path) -> float:
    """Return the share of sentences whose label the model finds."""
    return accuracy(model, read(path))


def accuracy(model: nn.Module, sentences: Sequence[Sentence]) -> float:
    """Return the share of sentences whose label the model finds."""
    tokenizer = AutoTokenizer.from_pretrained(ENCODER_DIR)
    right = 0
    with torch.inference_mode():
        for row in sentences:
            label = model(**tokenizer(row.text, truncation=True, return_tensors="pt")).logits.argmax()
            right += int(label) == row.label
    return right / len(sentences)
