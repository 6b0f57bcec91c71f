"""An explanation as data: what is shown of it, and its two plain forms."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

Record = Mapping[str, Any]  # one explanation, or one of its words

KINDS = {"word": "Entity", "answer": "Answer", "token": "Token", "label": "Label"}  # by a key of the prediction
UNSENDABLE = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 has no place for
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
NOTHING = "Nothing was found in this input, so nothing is explained."
JOINER = "\u200d"
FLAGS = "".join(map(chr, range(0x1F1E6, 0x1F200)))  # regional indicators
QUOTED = 60  # characters of a text in a title
LONGEST = 64  # code points of a character; no real one is as long, and what is longer is cut


@dataclass(frozen=True)
class Explained:
    """The explanations of one input.

    texts: its texts by name, in order. records: one explanation each, none where there was nothing to explain.
    lone: it always has exactly one.
    """

    texts: Mapping[str, str]
    records: Sequence[Record]
    lone: bool

    def to_json(self) -> Any:  # noqa: ANN401  # a record or a list of them
        """Return the one record, or the list of them."""
        return self.records[0] if self.lone else list(self.records)


def plain_text(item: Explained) -> str:
    """Return a line `target score` for each explanation, then a line for each word, the strongest first.

    The last line tells what was cut, if anything was; the only one that there was nothing to explain.
    """
    lines = [] if item.records else [NOTHING]
    for record in item.records:
        score = record["prediction"].get("score")
        lines.append(_one_line(record["target"]) + ("" if score is None else f" {score:.3f}"))
        lines += [f"{word['score']:+.3f}\t{_one_line(word['text'])}" for word in by_strength(record["words"])]
    return "\n".join([*lines, *filter(None, [cut(item)])])


def upstream_shape(item: Explained) -> dict[str, Any]:
    """Return the explanations of an input as TorchServe's example has them: tokens, their scores, and the deltas.

    What was cut is told as in a record. Several explanations share one list of words, unless each is of other tokens:
    then each has a list of its own.
    """
    size = _cut(item)
    return _upstream(item) | ({"truncated": size} if size else {})


def _upstream(item: Explained) -> dict[str, Any]:
    words = [[token["text"] for token in record["tokens"]] for record in item.records]
    importances = [[token["score"] for token in record["tokens"]] for record in item.records]
    deltas = [record["convergence_delta"] for record in item.records]
    if item.lone:
        return {"words": words[0], "importances": importances[0], "delta": deltas[0]}
    content: dict[str, Any] = {"words": words[0] if words and words.count(words[0]) == len(words) else words}
    targets = [record["target"] for record in item.records if "answer" in record["prediction"]]
    if targets != ["start", "end"]:
        return content | {"importances": importances, "delta": deltas}
    content |= {f"importances_answer_{target}": scores for target, scores in zip(targets, importances, strict=True)}
    return content | {f"delta_{target}": delta for target, delta in zip(targets, deltas, strict=True)}


def by_strength(words: Sequence[Record]) -> list[Record]:
    """Return words with the strongest of either sign first."""
    return sorted(words, key=lambda word: -abs(word["score"]))


def strongest(record: Record) -> float:
    """Return the size of the strongest word's score, which has the full shade; 0 where all are 0."""
    return max((abs(word["score"]) for word in record["words"]), default=0.0)


def pieces(text: str, name: str, words: Sequence[Record]) -> Iterator[tuple[str, Record | None]]:
    """Cut the text of this name into its words and, with None, what is between them: the pieces make up the text.

    A character stays whole; of words that overlap the first has the shared part, and what has no part is left out.
    """
    at = 0
    for word in sorted(words, key=lambda word: (word["start"], word["end"])):
        start, end = max(at, _whole(text, word["start"], -1)), _whole(text, word["end"], 1)
        if word.get("field", name) == name and word["start"] < word["end"] and start < end:
            if at < start:
                yield text[at:start], None
            yield text[start:end], word
            at = end
    if at < len(text):
        yield text[at:], None


def characters(text: str) -> Iterator[str]:
    """Cut a text into characters as a reader counts them: a letter with its marks, an emoji with all its parts."""
    at = 0
    while at < len(text):
        end = _whole(text, at + 1, 1)
        yield text[at:end]
        at = end


def said(record: Record) -> tuple[str, str, str]:
    """Return what kind of thing is explained, what of it, and the text of its prediction where that says more."""
    prediction, target = record["prediction"], record["target"]
    key = next((key for key in KINDS if key in prediction), "")
    more = str(prediction.get(key, ""))
    return KINDS.get(key, "Target"), visible(target), "" if more == target else visible(more)


def title(items: Sequence[Explained]) -> str:
    """Name the explanations of a request."""
    records = [record for item in items for record in item.records]
    if len(records) == 1:
        return f"Explanation of {visible(records[0]['target'])}"
    if len(items) == 1 and records:
        prediction = records[0]["prediction"]
        if written(items[0]):
            return f"Why the model wrote {_quoted(written(items[0]))}"
        if prediction.get("answer"):
            return f"Why the answer is {_quoted(prediction['answer'])}"
        if "word" in prediction:
            return f"{len(records)} entities"
    return f"{len(records) or 'No'} explanations"


def written(item: Explained) -> str:
    """Return what the model wrote behind a prompt, as far as it is explained."""
    return "".join(record["target"] for record in item.records if {"token", "index"} <= record["prediction"].keys())


def whole(item: Explained) -> Iterator[tuple[str, bool]]:
    """Cut what was read and written into pieces, each with whether it is itself explained: an entity, or written."""
    entities = [record["prediction"] for record in item.records if "start" in record["prediction"]]
    for name, text in item.texts.items():
        yield from ((piece, entity is not None) for piece, entity in pieces(text, name, entities))
    if written(item):
        yield written(item), True


def facts(record: Record) -> str:
    """Tell in a line how an explanation was made, and how exact it is where its shares are to add up."""
    count = record["n_steps"]
    steps = f", {count} step{'s' if count > 1 else ''}" if count else ""
    delta = "" if record["converged"] is None else f"Convergence delta {record['convergence_delta']:.2g}. "
    return (
        f"{record['method'].replace('_', ' ').capitalize()}{steps}. {delta}"
        f"Output {record['input_score']:.3g}, {record['baseline_score']:.3g} for the baseline."
    ).replace(" -", " \u2212")


def cut(item: Explained) -> str:
    """Tell how much of an input the model was given; nothing where that was all of it."""
    size = _cut(item)
    return f"The model saw {size['used']:,} of {size['tokens']:,} tokens." if size else ""


def _cut(item: Explained) -> Record | None:
    return next((record["truncated"] for record in item.records if "truncated" in record), None)


def number(score: float) -> str:
    """Return a signed number with the minus sign that readers and screen readers know."""
    return f"{score:+.3f}".replace("-", "\u2212")


def sendable(text: str) -> str:
    """Replace, one for one, the characters that neither XML nor UTF-8 has a place for."""
    return UNSENDABLE.sub("\ufffd", text)


def visible(text: str) -> str:
    """Return a text as one line; one of nothing but white space as the signs for it."""
    if text and not text.strip():
        return text.translate({ord(" "): "␣", ord("\n"): "⏎", ord("\t"): "⇥"})
    return _one_line(text).strip()


def _quoted(text: str) -> str:
    """Quote a text, or the beginning of a long one, so that its direction does not turn what is around it."""
    start = "".join(islice(characters(visible(text)), QUOTED))
    return f"“\u2068{start}{'…' if start != visible(text) else ''}\u2069”"


def _one_line(text: str) -> str:
    return CONTROL.sub(" ", sendable(text))


def _whole(text: str, at: int, step: int) -> int:
    """Move a position in steps of 1 or -1 until it parts no character."""
    at = min(max(at, 0), len(text))
    for _ in range(LONGEST):
        if not (0 < at < len(text) and _joined(text, at)):
            break
        at += step
    return at


def _joined(text: str, at: int) -> bool:
    """Whether the code points before and at a position are of one character."""
    before, after = text[at - 1], text[at]
    if after in FLAGS:  # two make a flag
        row = text[max(0, at - LONGEST) : at]
        return (len(row) - len(row.rstrip(FLAGS))) % 2 == 1
    marks = unicodedata.category(after) in ("Mn", "Mc", "Me", "Cf") or "\U0001f3fb" <= after <= "\U0001f3ff"
    return marks or before == JOINER or before + after == "\r\n"
