"""Train the starter models: small low-rank deltas on a public encoder, from the labelled data in the repository.

The delta is what is shipped; `download_models.py` adds it to the encoder's weights. Training needs the extra `train`
(peft) and ten minutes on two cores.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from scripts.console import ARTIFACTS, command, console, run
from scripts.starter import ENCODER_DIR, LABELS, build, prepare_encoder

app = command()

RANK = 16
LEARNING_RATE = 7e-4
BATCH = 32
TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
HEAD = ["pooler", "classifier"]  # trained whole: small, and the pooler was never trained for this


class Sentence(NamedTuple):
    """A labelled sentence; `label` is its index in LABELS."""

    subject: str
    label: int
    text: str


def read(path: Path) -> list[Sentence]:
    """Read lines of `subject<TAB>LABEL<TAB>sentence`."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [Sentence(subject, LABELS.index(label), text) for subject, label, text in rows]


def batches(sentences: Sequence[Sentence], shuffle: random.Random) -> Iterator[list[Sentence]]:
    """Yield shuffled batches of like length: little padding, so that training costs half."""
    order = sorted(sentences, key=lambda row: len(row.text) + shuffle.uniform(0, 25))
    groups = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    shuffle.shuffle(groups)
    yield from groups


def train(sentences: Sequence[Sentence], epochs: int, seed: int, after: Callable[[nn.Module, int], None]) -> nn.Module:
    """Train a low-rank delta and the head on `sentences`; `after(model, epoch)` is called after each epoch."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    shuffle = random.Random(seed)  # noqa: S311  # for an order, not for a secret
    tokenizer = AutoTokenizer.from_pretrained(ENCODER_DIR)
    model: Any = AutoModelForSequenceClassification.from_pretrained(ENCODER_DIR, num_labels=len(LABELS))
    options = {"lora_alpha": 2 * RANK, "lora_dropout": 0.1, "target_modules": TARGETS, "modules_to_save": HEAD}
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=RANK, **options))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.01)
    steps = epochs * len(list(batches(sentences, random.Random(0))))  # noqa: S311
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for epoch in range(epochs):
        model.train()
        for rows in track(list(batches(sentences, shuffle)), f"epoch {epoch + 1} of {epochs}", console=console):
            inputs = tokenizer([row.text for row in rows], padding=True, truncation=True, return_tensors="pt")
            wanted = torch.tensor([row.label for row in rows])
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(**inputs).logits
            nn.functional.cross_entropy(logits.float(), wanted, label_smoothing=0.05).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        after(model, epoch)
    return model  # type: ignore[no-any-return]


def accuracy(model: nn.Module, sentences: Sequence[Sentence]) -> float:
    """Return the share of sentences whose label the model finds."""
    tokenizer = AutoTokenizer.from_pretrained(ENCODER_DIR)
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(sentences), BATCH):
            rows = sentences[start : start + BATCH]
            inputs = tokenizer([row.text for row in rows], padding=True, truncation=True, return_tensors="pt")
            found = model(**inputs).logits.argmax(-1).tolist()
            right += sum(label == row.label for label, row in zip(found, rows, strict=True))
    return right / len(sentences)


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


@app.command()
def main(
    held_out: Annotated[
        str, typer.Option(help="Subjects to leave out of training and to score on; none trains on all.")
    ] = "",
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of the shuffling and of the new weights.")] = 0,
) -> None:
    """Train the sentiment starter.

    Examples:

      python -m scripts.train_starters --held-out health,events   # the score on subjects it never saw

      python -m scripts.train_starters                            # the delta that is shipped
    """
    prepare_encoder()
    folder = ARTIFACTS / "sequence_classification" / "starter"
    sentences = read(folder / "sentences.tsv")
    outside = [row for row in sentences if row.subject in held_out.split(",")]
    inside = [row for row in sentences if row.subject not in held_out.split(",")]
    tuning = read(folder / "exam_tuning.tsv")

    def score(model: nn.Module, epoch: int) -> None:
        shown = f"epoch {epoch + 1}: {accuracy(model, tuning):.1%} of exam_tuning"
        console.print(shown + (f", {accuracy(model, outside):.1%} of {held_out}" if outside else ""))

    model = train(inside, epochs, seed, score)
    if outside:
        return  # a measurement: the shipped delta is trained on all subjects
    save_file(delta(model), folder / "delta.safetensors")
    shipped = _as_shipped()
    for exam in ("exam_tuning", "exam_final"):
        console.print(f"{exam}: {accuracy(shipped, read(folder / f'{exam}.tsv')):.1%} as shipped")
    console.print(f"Put the scores into {folder}/README.md.")


def _as_shipped() -> nn.Module:
    """Return the model that users get: the encoder with the delta added, rounding included."""
    with tempfile.TemporaryDirectory() as folder:
        build("sequence_classification", Path(folder))
        return AutoModelForSequenceClassification.from_pretrained(folder)  # type: ignore[no-any-return]


if __name__ == "__main__":
    run(app)
