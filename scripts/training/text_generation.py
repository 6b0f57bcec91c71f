"""The story starter: a tiny GPT-2, trained from scratch on little stories, with a tokenizer made of the same."""

from __future__ import annotations

import random
import re
from typing import Any

import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from scripts.console import ARTIFACTS, console

FOLDER = ARTIFACTS / "text_generation" / "starter"
CONTEXT = 256  # tokens of prompt and answer together
VOCABULARY = 2048
SIZES = {"n_embd": 160, "n_layer": 5, "n_head": 5}
DROPOUT = 0.15
# those who stories are about; who is who changes from epoch to epoch
NAMES = "Tom Lily Ben Anna Max Mia Sam Sara Leo Emma Tim Lucy Jack Nina Kim Omar Rosa Ravi Hana Bob".split()  # noqa: SIM905
EPOCHS = 25
BATCH = 16
LEARNING_RATE = 2e-3
HELD_OUT = 25  # stories, of every seed others


def stories() -> list[str]:
    """Read the stories, one a line."""
    return (FOLDER / "stories.txt").read_text(encoding="utf-8").splitlines()


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer (arXiv:1508.07909) that begins every text with `<s>`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=CONTEXT, **names)


def train(epochs: int, seed: int) -> float:
    """Train and save the starter; return the perplexity of a token on stories it never saw."""
    torch.manual_seed(seed)
    shuffle = random.Random(seed)  # noqa: S311  # for an order, not for a secret
    texts = shuffle.sample(stories(), len(stories()))
    tokenizer = make_tokenizer(texts[HELD_OUT:])
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    options: dict[str, Any] = {
        **SIZES,
        **special,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), DROPOUT),
    }
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=CONTEXT, **options))
    learn(model, tokenizer, texts[HELD_OUT:], epochs, shuffle)
    losses = [_loss(model, [encode(tokenizer, text)]) for text in texts[:HELD_OUT]]
    model.half().save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    return float(torch.stack(losses).mean().exp())


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return a story's tokens, between the ones that begin and end a text."""
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id][:CONTEXT]


def renamed(text: str, shuffle: random.Random) -> str:
    """Give everybody in a story another name, each a different one."""
    others = dict(zip(NAMES, shuffle.sample(NAMES, len(NAMES)), strict=True))
    return re.sub(r"\b[A-Z][a-z]+\b", lambda word: others.get(word[0], word[0]), text)


def learn(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, texts: list[str], epochs: int, shuffle: random.Random
) -> None:
    """Train on stories."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, betas=(0.9, 0.98))
    steps = epochs * (len(texts) // BATCH)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    model.train()
    for epoch in track(range(epochs), "stories", console=console):
        rows = [encode(tokenizer, renamed(text, shuffle)) for text in texts]
        order = sorted(rows, key=lambda row: len(row) + shuffle.uniform(0, 20))
        groups = [order[i : i + BATCH] for i in range(0, len(order) - BATCH + 1, BATCH)]
        shuffle.shuffle(groups)
        for group in groups:
            loss = _loss(model, group)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        console.print(f"epoch {epoch + 1}: loss {loss.item():.2f}")
    model.eval()


def _loss(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """Cross entropy of the next token."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    logits: Tensor = model(input_ids=tokens[:, :-1]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0)
