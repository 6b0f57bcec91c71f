"""The question-answering starter: handwritten questions on short contexts, and templates filled with names."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from scripts.console import ARTIFACTS
from scripts.starter import ENCODER_DIR
from scripts.training.lora import Recipe

FOLDER = ARTIFACTS / "question_answering" / "starter"
NAMES = ARTIFACTS / "token_classification" / "starter" / "names"
RECIPE = Recipe("AutoModelForQuestionAnswering", ["start", "end"], ["qa_outputs"], rank=32, dropout=0.0)
DRAWS = 2  # fillings of each template in an epoch
JOINED = 0.15  # share of the handwritten contexts that get a second one beside them


class Question(NamedTuple):
    """A question on a context; the answer stands in it once as a whole word, and "" stands for none."""

    context: str
    question: str
    answer: str

    @property
    def start(self) -> int:
        """Where the answer begins."""
        match = re.search(rf"(?<!\w){re.escape(self.answer)}(?!\w)", self.context)
        assert match, self  # noqa: S101  # a mistake in the data
        return match.start()


def read(path: Path) -> list[list[Question]]:
    """Read blocks of `C: context`, then `Q: question` and `A: answer` in turn; `A: -` says that there is none."""
    blocks = []
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip()):
        context, *rest = [line.partition(": ")[2].strip() for line in block.splitlines()]
        pairs = zip(rest[::2], rest[1::2], strict=True)
        blocks.append([Question(context, question, "" if answer == "-" else answer) for question, answer in pairs])
    return blocks


class Lesson:
    """Every handwritten question and a few fillings of every template, anew in each epoch."""

    def __init__(self) -> None:
        self.written = read(FOLDER / "questions.txt")
        self.templates = read(FOLDER / "templates.txt")
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(ENCODER_DIR)

    def examples(self, epoch: int, shuffle: random.Random) -> list[Question]:
        """See `lora.Lesson`; the first epoch is of templates alone, which teach to point."""
        filled = [one for block in self.templates for _ in range(DRAWS) for one in fill(block, shuffle)]
        if epoch == 0:
            return filled + [one for block in self.templates for _ in range(DRAWS) for one in fill(block, shuffle)]
        others = shuffle.sample(self.written, len(self.written))
        written = [
            join(one, other, shuffle) if shuffle.random() < JOINED else one
            for block, (other, *_) in zip(self.written, others, strict=True)
            for one in block
        ]
        return written + shuffle.sample(filled, len(filled) // 2)

    def length(self, example: Question) -> int:
        """See `lora.Lesson`."""
        return (len(example.context) + len(example.question)) // 4 + 5

    def loss(self, model: nn.Module, examples: Sequence[Question]) -> Tensor:
        """Cross entropy of the first and of the last token; both are the first of the row where nothing answers."""
        pairs = [(row.question, row.context) for row in examples]
        inputs = self.tokenizer(pairs, padding=True, truncation="only_second", return_tensors="pt")
        starts, ends = [], []
        for i, row in enumerate(examples):
            first = inputs.char_to_token(i, row.start, 1) if row.answer else 0
            last = inputs.char_to_token(i, row.start + len(row.answer) - 1, 1) if row.answer else 0
            starts.append(first or 0)
            ends.append(last or 0)
        outputs = model(**inputs)
        losses = [
            nn.functional.cross_entropy(logits.float(), torch.tensor(wanted))
            for logits, wanted in ((outputs.start_logits, starts), (outputs.end_logits, ends))
        ]
        return torch.stack(losses).mean()


def join(one: Question, other: Question, shuffle: random.Random) -> Question:
    """Put another context beside a question's own: more to read past. Where it has the answer too, it is left away."""
    if one.answer and re.search(rf"(?<!\w){re.escape(one.answer)}(?!\w)", other.context):
        return one
    contexts = [one.context, other.context]
    shuffle.shuffle(contexts)
    return one._replace(context=" ".join(contexts))


def fill(block: Sequence[Question], shuffle: random.Random) -> list[Question]:
    """Fill the slots of a template, each with a value of its own."""
    slots = dict.fromkeys(re.findall(r"\{(\w+)\}", " ".join(map(" ".join, block))))
    values: dict[str, str] = {}
    for slot in slots:
        kind = slot.rstrip("0123456789")
        value = KINDS[kind](shuffle)
        while any(value in known or known in value for known in values.values()):
            value = KINDS[kind](shuffle)
        values[slot] = value
    filled = [Question(*(re.sub(r"\{(\w+)\}", lambda m: values[m[1]], text) for text in row)) for row in block]
    found = [len(re.findall(rf"(?<!\w){re.escape(row.answer)}(?!\w)", row.context)) for row in filled]
    return [row for row, count in zip(filled, found, strict=True) if count == 1 or not row.answer]


@cache
def names(kind: str) -> list[str]:
    """Read one of the lists of names."""
    return (NAMES / f"{kind}.txt").read_text(encoding="utf-8").split("\n")[:-1]


def _listed(*kinds: str) -> Callable[[random.Random], str]:
    return lambda shuffle: " ".join(shuffle.choice(names(kind)) for kind in kinds)


def _worded(pattern: str, low: int, high: int, *units: str) -> Callable[[random.Random], str]:
    return lambda shuffle: pattern.format(n=shuffle.randint(low, high), unit=shuffle.choice(units or ("",)))


SMALL = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "twenty", "forty"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October"]
COLOURS = ["red", "blue", "green", "yellow", "black", "white", "grey", "brown", "purple", "orange", "pink", "silver"]
MONEY = ["euros", "dollars", "pounds", "francs", "rupees", "yen"]
TIMES = ["minutes", "hours", "days", "weeks", "months", "years"]
LENGTHS = ["kilometres", "metres", "miles"]


def _number(shuffle: random.Random) -> str:
    return shuffle.choice(SMALL) if shuffle.random() < 0.5 else str(shuffle.randint(2, 900))


KINDS: dict[str, Callable[[random.Random], str]] = {
    "first": _listed("first_names"),
    "surname": _listed("surnames"),
    "person": _listed("first_names", "surnames"),
    "city": _listed("cities"),
    "country": _listed("countries"),
    "place": _listed("places"),
    "company": _listed("companies"),
    "org": _listed("organisations"),
    "object": _listed("objects"),
    "job": _listed("jobs"),
    "food": _listed("foods"),
    "animal": _listed("animals"),
    "price": _worded("{n} {unit}", 2, 950, *MONEY),
    "day": lambda shuffle: shuffle.choice(DAYS),
    "month": lambda shuffle: shuffle.choice(MONTHS),
    "date": lambda shuffle: f"{shuffle.randint(1, 28)} {shuffle.choice(MONTHS)} {shuffle.randint(1850, 2029)}",
    "year": _worded("{n}", 1700, 2029),
    "time": lambda shuffle: f"{shuffle.randint(1, 23)}:{shuffle.choice(['00', '15', '20', '30', '45', '50'])}",
    "number": _number,
    "duration": lambda shuffle: f"{_number(shuffle)} {shuffle.choice(TIMES)}",
    "distance": lambda shuffle: f"{_number(shuffle)} {shuffle.choice(LENGTHS)}",
    "colour": lambda shuffle: shuffle.choice(COLOURS),
    "age": _worded("{n}", 3, 99),
    "percent": _worded("{n}%", 1, 99),
}


def score(model: nn.Module, path: Path) -> float:
    """Return the share of answerable questions answered to the letter, by the best span of up to 20 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(ENCODER_DIR)
    questions = [row for block in read(path) for row in block if row.answer]
    right = 0
    for row in questions:
        inputs = tokenizer(row.question, row.context, return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**inputs)
        inside = torch.tensor([part == 1 for part in inputs.sequence_ids(0)])
        outside = torch.where(inside, 0.0, -1e9)
        sums = (outputs.start_logits[0] + outside)[:, None] + (outputs.end_logits[0] + outside)[None, :]
        sums = sums + torch.full_like(sums, -1e9).tril(-1) + torch.full_like(sums, -1e9).triu(20)
        first, last = divmod(int(sums.argmax()), sums.shape[1])
        found = row.context[inputs.token_to_chars(0, first).start : inputs.token_to_chars(0, last).end]
        right += found == row.answer
    return right / len(questions)
