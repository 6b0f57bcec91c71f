"""One TorchServe for all tests of serving, with a model of each kind."""

import pytest

from tests import models
from tests.serving import archive, serving


@pytest.fixture(scope="session")
def folders(tmp_path_factory, model_dir):
    """Archive name -> model folder."""
    topics = models.save(
        tmp_path_factory.mktemp("topics"), seed=1, num_labels=4, problem_type="multi_label_classification"
    )
    stars = models.save(tmp_path_factory.mktemp("stars"), seed=2, num_labels=1, problem_type="regression")
    return {"plain": model_dir, "topics": topics, "stars": stars}


@pytest.fixture(scope="session")
def live(tmp_path_factory, folders):
    folder = tmp_path_factory.mktemp("server")
    store = folder / "store"
    # a delay that lets 32 clients meet in one batch, however slow the machine
    together = {"batchSize": 32, "maxBatchDelay": 100, "maxWorkers": 1, "minWorkers": 1}
    archive(store, "plain", folders["plain"], together)
    archive(store, "alone", folders["plain"])  # as shipped, for one request at a time
    for name in ("topics", "stars"):
        archive(store, name, folders[name])
    with serving(folder, store) as server:
        yield server
