"""The story starter: a tiny Llama, trained from scratch on little stories, with a tokenizer made of the same."""

from __future__ import annotations

import random
from typing import Any

import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from scripts.console import ARTIFACTS, console

FOLDER = ARTIFACTS / "text_generation" / "starter"
CONTEXT = 256  # tokens of prompt and answer together
VOCABULARY = 2048
SIZES = {"hidden_size": 144, "intermediate_size": 384, "num_hidden_layers": 5, "num_attention_heads": 6}
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
    rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id][:CONTEXT] for text in texts]
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    options: dict[str, Any] = {**SIZES, **special}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, tie_word_embeddings=True, attention_dropout=0.1,
        **options,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    learn(model, rows[HELD_OUT:], epochs, shuffle)
    loss = torch.stack([_loss(model, [row]) for row in rows[:HELD_OUT]]).mean()
    model.half().save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    return float(loss.exp())


def learn(model: nn.Module, rows: list[list[int]], epochs: int, shuffle: random.Random) -> None:
    """Train on rows of tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, betas=(0.9, 0.98))
    steps = epochs * (len(rows) // BATCH)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    model.train()
    for epoch in track(range(epochs), "stories", console=console):
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
        if epoch % 10 == 0:
            console.print(f"epoch {epoch + 1}: loss {loss.item():.2f}")
    model.eval()


def _loss(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """Cross entropy of the next token."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    logits: Tensor = model(input_ids=tokens[:, :-1]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0)
