"""Tests never reach for the Hub, and run the product's own code from where an archive takes it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # beside servers, threads that spin take the cores from them

import pytest
import transformers

from tests import models

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A saved three-label BERT with random weights."""
    return models.save(tmp_path_factory.mktemp("bert"))
