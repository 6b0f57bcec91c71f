"""The entity starter: handwritten sentences with people, organisations and places, some of them renamed."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from scripts.console import ARTIFACTS
from scripts.starter import ENCODER_DIR
from scripts.training.lora import Recipe

FOLDER = ARTIFACTS / "token_classification" / "starter"
LABELS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
RECIPE = Recipe("AutoModelForTokenClassification", LABELS, ["classifier"], dropout=0.05)
DRAWS = 2  # times each sentence stands in an epoch
RENAMED = 0.5  # share of the entities that get another name of their kind
MARK = re.compile(r"\[([^\[\]]+)\]\((PER|ORG|LOC)\)")
LISTS = {"PER": ["first_names", "surnames"], "LOC": ["cities", "countries", "places"],
         "ORG": ["companies", "organisations"]}  # fmt: skip


class Sentence(NamedTuple):
    """A text with its entities as (start, end, label)."""

    text: str
    entities: tuple[tuple[int, int, str], ...]


def read(path: Path) -> list[str]:
    """Read sentences with their entities marked: `[Ada](PER) lives in [Paris](LOC).`"""
    return path.read_text(encoding="utf-8").splitlines()


def parse(line: str) -> Sentence:
    """Take the marks out of a sentence."""
    text, entities, done = "", [], 0
    for mark in MARK.finditer(line):
        text += line[done : mark.start()]
        entities.append((len(text), len(text) + len(mark[1]), mark[2]))
        text += mark[1]
        done = mark.end()
    return Sentence(text + line[done:], tuple(entities))


class Lesson:
    """Every sentence a few times in an epoch, some of its entities renamed."""

    def __init__(self) -> None:
        self.lines = read(FOLDER / "sentences.txt")
        self.names = {path.stem: read(path) for path in sorted((FOLDER / "names").glob("*.txt"))}
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(ENCODER_DIR)

    def examples(self, epoch: int, shuffle: random.Random) -> list[Sentence]:
        """See `lora.Lesson`."""
        return [parse(line) for line in self.lines] + [
            parse(MARK.sub(lambda mark: self._renamed(mark, shuffle), line))
            for _ in range(DRAWS - 1)
            for line in self.lines
        ]

    def length(self, example: Sentence) -> int:
        """See `lora.Lesson`."""
        return len(example.text) // 4 + 3

    def loss(self, model: nn.Module, examples: Sequence[Sentence]) -> Tensor:
        """Cross entropy of every token; the parts of a word all carry its label."""
        inputs = self.tokenizer([row.text for row in examples], padding=True, truncation=True, return_tensors="pt")
        wanted = torch.full(inputs["input_ids"].shape, -100)
        for i, row in enumerate(examples):
            for j, (start, end) in enumerate(inputs.encodings[i].offsets):
                if start < end:
                    wanted[i, j] = LABELS.index(_label(row, start))
        logits = model(**inputs).logits.float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    def _renamed(self, mark: re.Match[str], shuffle: random.Random) -> str:
        name, label = mark[1], mark[2]
        if shuffle.random() > RENAMED:
            return mark[0]
        if label == "PER" and " " in name:
            other = " ".join(shuffle.choice(self.names[kind]) for kind in LISTS[label])
        else:
            other = shuffle.choice(self.names[shuffle.choice(LISTS[label])])
        return f"[{other}]({label})"


def _label(row: Sentence, place: int) -> str:
    for start, end, label in row.entities:
        if start <= place < end:
            return ("B-" if place == start else "I-") + label
    return "O"


def score(model: nn.Module, path: Path) -> float:
    """Return F1 of the entities found exactly: start, end and label (CoNLL-2003's measure)."""
    tokenizer = AutoTokenizer.from_pretrained(ENCODER_DIR)
    right = found = wanted = 0
    for row in map(parse, read(path)):
        inputs = tokenizer(row.text, return_tensors="pt")
        with torch.inference_mode():
            labels = model(**inputs).logits[0].argmax(-1).tolist()
        spans = entities([LABELS[i] for i in labels], inputs.encodings[0].offsets)
        right += len(set(spans) & set(row.entities))
        found += len(spans)
        wanted += len(row.entities)
    return 2 * right / (found + wanted)


def entities(labels: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int, str]]:
    """Join neighbouring tokens of one label, as `aggregation_strategy: simple` does."""
    spans: list[tuple[int, int, str]] = []
    last = "O"
    for label, (start, end) in zip(labels, offsets, strict=True):
        if start == end:
            continue
        kind = label[2:]
        if kind and label.startswith("I-") and last[2:] == kind:
            spans[-1] = (spans[-1][0], end, kind)
        elif kind:
            spans.append((start, end, kind))
        last = label
    return spans
