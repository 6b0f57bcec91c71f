"""Explanations made up for tests: words cut at white space, with the scores given."""

import re

from hfserve.views.explained import Explained


def words(text, scores, **more):
    """A word for each run of letters, as far as the scores go; `field="question"` names their text."""
    found = zip(re.finditer(r"\S+", text), scores)  # noqa: B905  # the rest of the text has no words
    return [{"text": m[0], "start": m.start(), "end": m.end(), "score": score} | more for m, score in found]


def record(words, target="POSITIVE", prediction=None, **more):
    return {
        "target": target,
        "prediction": prediction or {"label": target, "score": 0.98},
        "method": "layer_integrated_gradients",
        "tokens": words,
        "words": words,
        "input_score": 3.9,
        "baseline_score": -0.2,
        "norm": 2.3,
        "convergence_delta": 0.003,
        "n_steps": 24,
        "converged": True,
    } | more


def explained(text, *scores, **more):
    """One explanation of one text."""
    return Explained({"text": text}, [record(words(text, scores), **more)], lone=True)


def generated(prompt, tokens, **more):
    """An explanation of each token that was generated."""
    of = {"tokens": len(tokens)}
    records = [
        record(words(prompt, (0.6, -0.8)), token, {"token": token, "score": 0.3, "index": i} | of, **more)
        for i, token in enumerate(tokens)
    ]
    return Explained({"prompt": prompt}, records, lone=False)


def named(text, *names):
    """An explanation of each entity, which are names in the text."""
    scores = [0.3] * len(text.split())
    found = [{"entity_group": "PER", "score": 0.9, "word": name} | place(text, name) for name in names]
    return Explained({"text": text}, [record(words(text, scores), "PER", one) for one in found], lone=False)


def place(text, name):
    start = text.index(name)
    return {"start": start, "end": start + len(name)}


def answered(question="Where is it?", context="It is in Paris, they say.", **more):
    """The two explanations of an answer: of its start and of its end."""
    both = words(question, (0.1, 0.2, 0.3), field="question") + words(context, (0.1, -0.4, 0.2, 0.9), field="context")
    answer = {"answer": "Paris", "score": 0.9, "start": 9, "end": 14}
    records = [record(both, target, answer, **more) for target in ("start", "end")]
    return Explained({"question": question, "context": context}, records, lone=False)
