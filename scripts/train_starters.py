"""Train the starter models again, from the data that stands in artifacts/<mode>/starter/.

All but the story teller are small deltas on a public encoder, and need the extra `train` (peft).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Annotated

import transformers
import typer
from safetensors.torch import save_file
from torch import nn

from scripts.console import CommandError, command, console, run
from scripts.starter import DELTA, build, prepare_encoder
from scripts.training import lora, question_answering, sequence_classification, text_generation, token_classification

app = command()

# what each is scored by is in its `score`: accuracy, F1 of exact entities, exact answers
LORA: dict[str, ModuleType] = {
    "sequence_classification": sequence_classification,
    "token_classification": token_classification,
    "question_answering": question_answering,
}
EXAMS = ("exam_tuning.txt", "exam_tuning.tsv", "exam_final.txt", "exam_final.tsv")


def train_delta(mode: str, epochs: int, seed: int) -> None:
    """Train the delta of one mode, and save it."""
    taught = LORA[mode]
    tuning = exams(mode)[0]

    def after(model: nn.Module, epoch: int) -> None:
        console.print(f"epoch {epoch + 1}: {taught.score(model, tuning):.1%} of {tuning.name}")

    model = lora.train(taught.RECIPE, taught.Lesson(), epochs, seed, after)
    save_file(lora.delta(model), taught.FOLDER / DELTA)


def exams(mode: str) -> list[Path]:
    """Return the exam that settings were chosen by, and the one that was kept for the end."""
    return [LORA[mode].FOLDER / name for name in EXAMS if (LORA[mode].FOLDER / name).exists()]


def score_shipped(mode: str) -> None:
    """Score what users get: the encoder with the delta added, rounding included."""
    taught = LORA[mode]
    with tempfile.TemporaryDirectory() as folder:
        build(mode, Path(folder))
        shipped = getattr(transformers, taught.RECIPE.auto_class).from_pretrained(folder)
    for exam in exams(mode):
        console.print(f"{exam.name}: {taught.score(shipped, exam):.1%} as shipped")
    console.print(f"Its card is {os.path.relpath(taught.FOLDER / 'README.md')}.")


@app.command()
def main(
    mode: Annotated[str, typer.Argument(help="The mode whose starter to train.")],
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; what the mode's recipe says.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the shuffling and of the new weights.")] = 0,
    held_out: Annotated[
        str, typer.Option(help="Only score sequence_classification on subjects left out of training.")
    ] = "",
    score: Annotated[bool, typer.Option("--score", help="Train nothing: only score what is shipped.")] = False,
) -> None:
    """Train a starter, and print its scores on the exams that stand beside its data.

    Examples:

      python -m scripts.train_starters token_classification

      python -m scripts.train_starters text_generation

      python -m scripts.train_starters question_answering --score

      python -m scripts.train_starters sequence_classification --held-out health,events
    """
    if held_out and mode != "sequence_classification":
        raise CommandError("--held-out is for sequence_classification, whose sentences have subjects.")
    if mode == "text_generation":
        if score:
            raise CommandError("text_generation has no exam: its perplexity is measured when it is trained.")
        perplexity = text_generation.train(epochs or text_generation.EPOCHS, seed)
        console.print(f"perplexity {perplexity:.1f} on stories left out of training")
        return
    if mode not in LORA:
        raise CommandError(f"There is no starter for {mode!r}: choose one of {', '.join([*LORA, 'text_generation'])}.")
    prepare_encoder()
    passes = epochs or LORA[mode].RECIPE.epochs
    if held_out:
        score_held_out(held_out.split(","), passes, seed)
        return
    if not score:
        train_delta(mode, passes, seed)
    score_shipped(mode)


def score_held_out(subjects: list[str], epochs: int, seed: int) -> None:
    """Train the sentiment starter without some subjects, and score it on them; nothing is kept."""
    outside = [row for row in sequence_classification.read(sequence_classification.FOLDER / "sentences.tsv")
               if row.subject in subjects]  # fmt: skip
    lesson = sequence_classification.Lesson(subjects)
    model = lora.train(sequence_classification.RECIPE, lesson, epochs, seed, lambda model, epoch: None)
    console.print(f"{sequence_classification.accuracy(model, outside):.1%} of {', '.join(subjects)}")


if __name__ == "__main__":
    run(app)
