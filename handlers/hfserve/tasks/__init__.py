"""The tasks by the name that `mode:` gives. A new one is a file beside this and a line in the dict."""

from __future__ import annotations

from hfserve.tasks.base import Task
from hfserve.tasks.sequence_classification import SequenceClassification

TASKS: dict[str, type[Task]] = {
    "sequence_classification": SequenceClassification,
}
