import pytest
import torch
from safetensors.torch import save_file

from scripts import starter
from scripts.console import CommandError


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {"low": torch.randn(3, 4), "whole": torch.randn(2), "kept": torch.randn(5)}


@pytest.fixture
def delta():
    """As it is stored: in half precision."""
    torch.manual_seed(1)
    delta = {"low.A": torch.randn(2, 4), "low.B": torch.randn(3, 2), "whole": torch.randn(2), "new": torch.randn(3)}
    return {name: value.half() for name, value in delta.items()}


def test_a_low_rank_pair_is_multiplied_and_added(weights, delta):
    a, b = delta["low.A"].tolist(), delta["low.B"].tolist()
    product = [[sum(b[i][k] * a[k][j] for k in range(2)) for j in range(4)] for i in range(3)]
    torch.testing.assert_close(starter.add_delta(weights, delta)["low"], weights["low"] + torch.tensor(product))


def test_a_weight_trained_whole_replaces_the_one_there_was(weights, delta):
    merged = starter.add_delta(weights, delta)
    assert torch.equal(merged["whole"], delta["whole"].float())
    assert torch.equal(merged["new"], delta["new"].float())


def test_weights_without_a_delta_stay_and_nothing_of_the_pairs_is_left(weights, delta):
    merged = starter.add_delta(weights, delta)
    assert torch.equal(merged["kept"], weights["kept"])
    assert set(merged) == {"low", "whole", "kept", "new"}
    assert {value.dtype for value in merged.values()} == {torch.float32}


def test_the_weights_that_went_in_are_not_changed(weights, delta):
    before = {name: value.clone() for name, value in weights.items()}
    starter.add_delta(weights, delta)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name]) for name in before)


def test_an_encoder_with_other_weights_is_refused_and_nothing_of_it_kept(weights, tmp_path, monkeypatch):
    asked = []

    def fetch(repo, revision, into):
        asked.append((repo, revision))
        into.mkdir()
        save_file(weights, into / "model.safetensors")

    monkeypatch.setattr(starter, "fetch", fetch)
    monkeypatch.setattr(starter, "ENCODER_DIR", tmp_path / "encoder")
    with pytest.raises(CommandError, match="sha256 differs"):
        starter.prepare_encoder()
    assert asked == [(starter.ENCODER, starter.ENCODER_REVISION)]
    assert not list(tmp_path.iterdir())


def test_an_encoder_with_the_weights_we_know_is_kept_without_the_clients_notes(weights, tmp_path, monkeypatch):
    def fetch(repo, revision, into):
        (into / starter.NOTES).mkdir(parents=True)
        save_file(weights, into / "model.safetensors")

    save_file(weights, tmp_path / "known")
    monkeypatch.setattr(starter, "fetch", fetch)
    monkeypatch.setattr(starter, "ENCODER_DIR", tmp_path / "encoder")
    monkeypatch.setattr(starter, "ENCODER_SHA256", starter.sha256(tmp_path / "known"))
    assert starter.prepare_encoder() == tmp_path / "encoder"
    assert [path.name for path in (tmp_path / "encoder").iterdir()] == ["model.safetensors"]
