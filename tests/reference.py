"""The plain transformers answer, one text at a time, written from the model's definition: what ours must equal."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def scores(folder: Path, texts: list[str], function: str = "softmax") -> list[dict[str, float]]:
    """Label to score of each text, in fp32, eager, without batching."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    apply = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda x: x}[function]
    found = []
    for text in texts:
        with torch.inference_mode():
            logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
        found.append({model.config.id2label[i]: value for i, value in enumerate(apply(logits).tolist())})
    return found


def pair_scores(folder: Path, text: str, pair: str) -> dict[str, float]:
    """The same for one pair of texts."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(text, pair, return_tensors="pt")
    with torch.inference_mode():
        values = model(**tokens).logits[0].softmax(-1).tolist()
    return {model.config.id2label[i]: value for i, value in enumerate(values)}
