import pytest
import torch
from hfserve.config import parse_config
from hfserve.forms import Answer, Call
from hfserve.pipeline import Pipeline


class Asked:
    """A pipeline, asked in Python."""

    def __init__(self, folder, mode, **handler):
        config = parse_config({"handler": {"mode": mode, "engine": "eager", **handler}})
        self.folder = folder
        self.pipeline = Pipeline.load(folder, config, torch.device("cpu"))

    def __call__(self, payload, **parameters):
        answer = self.answer(payload, **parameters)
        assert isinstance(answer, Answer), (answer, answer.field)
        return answer.results[0] if answer.lone else list(answer.results)

    def answer(self, payload, **parameters):
        return self.pipeline.answer([Call(payload, "inputs", parameters)])[0]

    def refusal(self, payload, **parameters):
        """Status, field and message of an error."""
        error = self.answer(payload, **parameters)
        assert not isinstance(error, Answer), error
        return int(error.status), error.field, error.message


@pytest.fixture(scope="session")
def asking():
    return Asked
