"""The plain transformers answer, one input at a time, written from the model's definition: what ours must equal."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, TokenClassificationPipeline

from tests.models import HEADS

transformers.utils.logging.disable_progress_bar()


@cache
def plain(folder: Path, head: str):
    """The model, eager in fp32, and its tokenizer."""
    return HEADS[head].from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


# --- sequence classification


def scores(folder: Path, texts: list, function: str = "softmax") -> list[dict[str, float]]:
    """Label to score of each text, or pair of texts."""
    model, tokenizer = plain(folder, "sequence_classification")
    apply = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda x: x}[function]
    found = []
    for text in texts:
        pair = (text["text"], text["text_pair"]) if isinstance(text, dict) else (text,)
        with torch.inference_mode():
            logits = model(**tokenizer(*pair, truncation=True, return_tensors="pt")).logits[0]
        found.append({model.config.id2label[i]: value for i, value in enumerate(apply(logits).tolist())})
    return found


# --- windows: a text longer than the model, cut by hand


@dataclass
class Cut:
    """What the model is given of a long text: `first` is the place of the window's first token in the text."""

    first: int
    ids: list[int]


def cut(ids: list[int], room: int, stride: int) -> list[Cut]:
    windows = [Cut(0, ids[:room])]
    while windows[-1].first + room < len(ids):
        first = windows[-1].first + room - stride
        windows.append(Cut(first, ids[first : first + room]))
    return windows


def frame(tokenizer) -> tuple[list[int], list[int], list[int]]:
    """The special tokens before the first part of a row, behind each part, and behind the last."""
    if "XLNet" in type(tokenizer).__name__:
        return [], [tokenizer.sep_token_id], [tokenizer.cls_token_id]
    if tokenizer.cls_token_id is not None:
        return [tokenizer.cls_token_id], [tokenizer.sep_token_id], []
    ends = tokenizer.num_special_tokens_to_add() > 0  # as T5's does; GPT-2's adds nothing
    return [], [tokenizer.eos_token_id] if ends else [], []


def framed(tokenizer, *parts: list[int]) -> tuple[dict[str, torch.Tensor], list[int]]:
    """One row as the model wants it, as [CLS] a [SEP] b [SEP], and the column where each part begins."""
    row, behind, last = frame(tokenizer)
    types, firsts = [0] * len(row), []
    for i, part in enumerate(parts):
        firsts.append(len(row))
        row = row + part + behind
        types = types + [i] * (len(row) - len(types))
    row, types = row + last, types + [2] * len(last)
    tensors = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
    if "token_type_ids" in tokenizer.model_input_names:
        tensors["token_type_ids"] = torch.tensor([types])
    return tensors, firsts


# --- token classification


@torch.inference_mode()
def entities(folder: Path, texts: list[str], strategy: str, limit: int, stride: int | None = None) -> list[list[dict]]:
    """Every token from the window where it is farther from an edge, then transformers' own rules on the whole text."""
    model, tokenizer = plain(folder, "token_classification")
    pipeline = TokenClassificationPipeline(model=model, tokenizer=tokenizer)
    room = limit - tokenizer.num_special_tokens_to_add()
    stride = room // 4 if stride is None else stride
    found = []
    for text in texts:
        tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        judged = np.zeros((len(tokens["input_ids"]), model.config.num_labels), np.float32)
        best = np.full(len(judged), -1)
        for window in cut(tokens["input_ids"], room, stride):
            tensors, (before,) = framed(tokenizer, window.ids)
            logits = model(**tensors).logits[0, before : before + len(window.ids)]
            for i, row in enumerate(logits.softmax(-1).numpy()):
                at = window.first + i
                left = i if window.first else 10**6  # the text's own edges are no seams
                right = len(window.ids) - 1 - i if window.first + len(window.ids) < len(judged) else 10**6
                if min(left, right) >= best[at]:  # of two as good, the later window
                    best[at], judged[at] = min(left, right), row
        pre = pipeline.gather_pre_entities(
            text,
            np.array(tokens["input_ids"]),
            judged,
            tokens["offset_mapping"],
            np.zeros(len(judged)),
            pipeline_strategy(strategy),
        )
        for token in pre:
            token["index"] += before
        records = pipeline.aggregate(pre, pipeline_strategy(strategy))
        found.append([r for r in records if r.get("entity", r.get("entity_group")) != "O"])
    return found


def pipeline_strategy(name: str):
    from transformers.pipelines.token_classification import AggregationStrategy

    return AggregationStrategy[name.upper()]


def pipeline_entities(folder: Path, inputs, **parameters) -> list:
    """What transformers' pipeline itself answers."""
    model, tokenizer = plain(folder, "token_classification")
    return TokenClassificationPipeline(model=model, tokenizer=tokenizer)(inputs, **parameters)


# --- question answering


@torch.inference_mode()
def spans(
    folder: Path, pairs: list[dict], limit: int, longest: int = 15, impossible: bool = False, stride: int | None = None
) -> list[list[dict]]:
    """All spans of each context, best first, by going through every start and end of every window."""
    model, tokenizer = plain(folder, "question_answering")
    special = tokenizer.num_special_tokens_to_add(pair=True)
    found = []
    for pair in pairs:
        question = tokenizer(pair["question"], add_special_tokens=False)["input_ids"]
        context = tokenizer(pair["context"], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        windows = cut(context["input_ids"], limit - special - len(question), limit // 4 if stride is None else stride)
        starts, ends, null = [], [], []
        for window in windows:
            parts = [window.ids, question] if "XLNet" in type(tokenizer).__name__ else [question, window.ids]
            tensors, firsts = framed(tokenizer, *parts)
            outputs, first = model(**tensors), firsts[parts.index(window.ids)]
            place = slice(first, first + len(window.ids))
            starts.append(outputs.start_logits[0, place].double().numpy())
            ends.append(outputs.end_logits[0, place].double().numpy())
            null.append((float(outputs.start_logits[0, 0]), float(outputs.end_logits[0, 0])))
        nothing = [min(side) for side in zip(*null, strict=True)]
        totals = [
            np.exp(np.concatenate(side)).sum() + (np.exp(none) if impossible else 0)
            for side, none in zip((starts, ends), nothing, strict=True)
        ]
        best: dict[tuple[int, int], float] = {}
        for window, first, last in zip(windows, starts, ends, strict=True):
            for i in range(len(first)):
                for j in range(i, min(i + longest, len(last))):
                    score = np.exp(first[i]) / totals[0] * np.exp(last[j]) / totals[1]
                    place = words(pair["context"], context, window.first + i, window.first + j, window)
                    best[place] = max(best.get(place, 0.0), score)
        if impossible:
            best[0, 0] = np.exp(nothing[0]) / totals[0] * np.exp(nothing[1]) / totals[1]
        ordered = sorted(best.items(), key=lambda entry: -entry[1])
        found.append(
            [
                {"answer": pair["context"][start:end], "score": score, "start": start, "end": end}
                for (start, end), score in ordered
            ]
        )
    return found


def words(text: str, tokens, first: int, last: int, window: Cut) -> tuple[int, int]:
    """A span widened to whole words, as far as the window shows them."""
    ids, offsets = tokens.word_ids(0), tokens["offset_mapping"]
    seen = range(window.first, window.first + len(window.ids))
    while first - 1 in seen and ids[first - 1] == ids[first] and text[offsets[first][0] - 1].isalnum():
        first -= 1
    # by the character behind it, not by the next token: SentencePiece's mark of a blank stands where its word begins
    while last + 1 in seen and ids[last + 1] == ids[last] and text[offsets[last][1] :][:1].isalnum():
        last += 1
    return offsets[first][0], offsets[last][1]


# --- text generation


@torch.inference_mode()
def continuations(folder: Path, prompts: list[str], seed: int | None = None, **options) -> list[str]:
    """What `generate` writes behind each prompt alone."""
    model, tokenizer = plain(folder, "text_generation")
    found = []
    for prompt in prompts:
        tokens = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        if seed is not None:
            torch.manual_seed(seed)
        row = model.generate(**tokens, pad_token_id=tokenizer.eos_token_id, **options)[0].tolist()
        before = tokenizer.decode(row[: tokens["input_ids"].shape[1]], skip_special_tokens=True)
        new = row[tokens["input_ids"].shape[1] :]
        if tokenizer.eos_token_id in new:
            new = new[: new.index(tokenizer.eos_token_id)]
        whole = tokenizer.decode([*row[: tokens["input_ids"].shape[1]], *new], skip_special_tokens=True)
        found.append(whole[len(before) :])
    return found
