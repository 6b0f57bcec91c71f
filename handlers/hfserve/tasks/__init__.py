"""The tasks by the name that `mode:` gives. A new one is a file beside this and a line in the dict."""

from __future__ import annotations

from hfserve.errors import ConfigError
from hfserve.tasks.base import Task
from hfserve.tasks.question_answering import QuestionAnswering
from hfserve.tasks.sequence_classification import SequenceClassification
from hfserve.tasks.text_generation import TextGeneration
from hfserve.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    "sequence_classification": SequenceClassification,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
    "text_generation": TextGeneration,
}


def task_class(mode: str) -> type[Task]:
    """Return the class that `TASKS` has for a mode. Raises ConfigError."""
    if mode not in TASKS:
        raise ConfigError(f"handler.mode {mode!r} is unknown: choose one of {', '.join(TASKS)}.")
    return TASKS[mode]
