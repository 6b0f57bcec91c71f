"""Preparing weights, with the real Hub client talking to a stand-in for the Hub on this machine."""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hfserve.proof import sha256
from huggingface_hub import close_session, constants
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM

from scripts import download_models
from scripts.console import ROOT, CommandError
from tests import models
from tests.hub_stand_in import Hub, point_client_at

REPO = "someone/reviews"
LABELS = ["angry", "calm", "glad"]
MADE_BY_NAME = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
CHUNK = 4096  # what the client writes at once; its own 10 MB are more than the whole model here


@pytest.fixture
def hub(monkeypatch):
    """The stand-in, and this process's Hub client pointed at it."""
    with Hub() as hub:
        point_client_at(hub, monkeypatch)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        yield hub
        close_session()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with three labels of its own and a tokenizer that keeps upper case."""
    folder = models.save(tmp_path_factory.mktemp("saved"), **MADE_BY_NAME)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage: en\n---\n\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another model, in several files."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("other")
    models.build("bert").save_pretrained(folder, max_shard_size="40KB")
    models.tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture
def pickled(saved, tmp_path):
    """The model as it was saved before safetensors."""
    folder = copied(saved, tmp_path / "pickled")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def prepare(tmp_path):
    """Prepare the model `reviews` in a folder of this test's, from a source."""

    def prepare(source: object, pickle: str | None = None, **handler) -> Path:
        section = {"mode": "sequence_classification", "model_name": str(source), **handler}
        return download_models.prepare("reviews", section, pickle, tmp_path / "models")

    return prepare


@pytest.fixture
def refusal(prepare):
    """Prepare what cannot be prepared, and return the one line that says why."""

    def refusal(*args, **options) -> str:
        with pytest.raises(CommandError) as error:
            prepare(*args, **options)
        message = str(error.value)
        assert "\n" not in message
        assert message.endswith(".")
        return message

    return refusal


@pytest.fixture
def prepared(tmp_path):
    return tmp_path / "models" / "reviews"


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {name: ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) for name in names(folder)}


def source_of(folder: Path) -> dict:
    return json.loads((folder / "source.json").read_text())["weights"]


def same_weights(one: Path, other: Path) -> bool:
    a, b = (AutoModelForSequenceClassification.from_pretrained(folder).state_dict() for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def command(*words: object, **environment: str) -> subprocess.CompletedProcess:
    """Run the command as a user does, in an environment without this process's HF_ settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment = clean | {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1,localhost"} | environment
    line = [sys.executable, "-m", "scripts.download_models", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


# --- from the Hub -----------------------------------------------------------------------------------------------------


def test_the_command_downloads_a_model_at_the_commit_of_its_revision_and_tells_it(saved, other, tmp_path):
    with Hub() as hub:
        hub.push(REPO, other)
        commit = hub.push(REPO, saved, "v1.0")
        done = command(
            *("--model", REPO, "--revision", "v1.0", "--models", tmp_path / "models"),
            HF_ENDPOINT=hub.address,
            HF_HOME=str(tmp_path / "home"),
        )
    assert done.returncode == 0, done.stderr
    assert f"revision: {commit}" in done.stdout.replace("\n", " ")
    folder = tmp_path / "models" / "sequence_classification"
    weights = sha256(saved / "model.safetensors")
    told = {"source": REPO, "revision": commit, "licence": "cc-by-4.0", "sha256": {"model.safetensors": weights}}
    assert source_of(folder) == told
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in saved.iterdir())
    assert names(folder) == names(saved) | {"source.json"}


def test_a_downloaded_model_keeps_its_weights_labels_and_casing(hub, saved, prepare):
    hub.push(REPO, saved)
    folder = prepare(REPO)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 3
    assert model.config.id2label == dict(enumerate(LABELS))
    assert same_weights(folder, saved)
    tokenizer, original = (AutoTokenizer.from_pretrained(path) for path in (folder, saved))
    assert tokenizer("The tea").input_ids == original("The tea").input_ids != tokenizer("the tea").input_ids


def test_a_model_in_several_weight_files_downloads_whole(hub, other, prepare):
    hub.push(REPO, other)
    folder = prepare(REPO)
    assert source_of(folder)["sha256"] == {path.name: sha256(path) for path in other.glob("*.safetensors")}
    assert same_weights(folder, other)


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, saved, prepare, refusal, prepared):
    hub.push(REPO, saved)
    hub.cuts["model.safetensors"] = 8 * CHUNK
    assert "run the command again" in refusal(REPO)
    assert not prepared.exists()
    before = len(hub.requests)
    hub.cuts.clear()
    assert same_weights(prepare(REPO), saved)
    again = hub.requests[before:]
    (weights,) = [request for request in again if request.method == "GET" and "/stored/" in request.path]
    assert weights.headers["Range"] == f"bytes={8 * CHUNK}-"
    # and what had arrived whole is not sent again
    assert not [request for request in again if request.method == "GET" and request.path.endswith("config.json")]
    assert names(prepared) == names(saved) | {"source.json"}


@pytest.mark.parametrize("names_differ", [True, False])
def test_a_download_resumed_after_the_branch_moved_holds_nothing_of_the_old_commit(
    hub, saved, other, tmp_path, prepare, refusal, names_differ
):
    old = other if names_differ else models.save(tmp_path / "old", seed=2)
    hub.push(REPO, old)
    last = max(old.glob("*.safetensors"))
    hub.cuts[last.name] = last.stat().st_size // 2  # behind the header, which the two have in common
    refusal(REPO)
    hub.cuts.clear()
    commit = hub.push(REPO, saved)
    folder = prepare(REPO)
    assert names(folder) == names(saved) | {"source.json"}
    assert source_of(folder)["revision"] == commit
    assert same_weights(folder, saved)


def test_the_part_that_was_kept_is_verified_with_the_rest(hub, saved, prepare, refusal, prepared):
    hub.push(REPO, saved)
    hub.cuts["model.safetensors"] = 8 * CHUNK
    refusal(REPO)
    (part,) = [path for path in prepared.parent.rglob("*") if path.is_file() and path.stat().st_size == 8 * CHUNK]
    part.write_bytes(bytes(8 * CHUNK))
    hub.cuts.clear()
    assert "arrived damaged" in refusal(REPO)
    assert same_weights(prepare(REPO), saved)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_damaged_content_is_refused_and_deleted(hub, saved, prepare, refusal, prepared, name):
    hub.push(REPO, saved)
    hub.damaged.add(name)
    message = refusal(REPO)
    assert f"{name} arrived damaged" in message
    assert "deleted" in message
    assert not prepared.exists()
    size = (saved / name).stat().st_size
    assert size not in [path.stat().st_size for path in prepared.parent.rglob("*") if path.is_file()]
    hub.damaged.clear()
    assert same_weights(prepare(REPO), saved)


def test_an_access_token_goes_to_the_hub_but_not_to_where_its_large_files_are(hub, saved, prepare, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.push(REPO, saved)
    prepare(REPO)
    stored = [request for request in hub.requests if "/stored/" in request.path]
    others = [request for request in hub.requests if request not in stored]
    assert stored
    assert not [request for request in stored if "authorization" in map(str.lower, request.headers)]
    assert not [request for request in others if "hf_secret" not in str(request.headers)]


# --- licences ---------------------------------------------------------------------------------------------------------


CARDS = {
    "---\nlicense: mit\n---\n# A model": "mit",
    "---\nlicense: [mit, cc0-1.0]\n---\n": "mit, cc0-1.0",
    "---\nlicense: other\nlicense_name: our-own\n---\n": "our-own",
    "---\nlicense: other\n---\n": "other",
    "---\nlanguage: en\n---\n": "unknown",
    "# A model\nlicense: mit": "unknown",
    "---\nlicense: [\n---\n": "unknown",
    "---\n- license\n---\n": "unknown",
    "": "unknown",
    None: "unknown",
}


@pytest.mark.parametrize(("card", "licence"), CARDS.items())
def test_the_licence_of_a_folder_is_its_cards(saved, tmp_path, prepare, card, licence):
    folder = copied(saved, tmp_path / "folder")
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_text(card)
    assert source_of(prepare(folder))["licence"] == licence


def test_the_licence_of_a_model_on_the_hub_is_its_cards_or_else_its_tag(hub, other, prepare, monkeypatch):
    hub.push(REPO, other)
    assert source_of(prepare(REPO))["licence"] == "unknown"
    monkeypatch.setattr("tests.hub_stand_in._card", lambda files: {"tags": ["pytorch", "license:mit"]})
    assert source_of(prepare(REPO, revision="main"))["licence"] == "mit"


# --- models without a head --------------------------------------------------------------------------------------------


@pytest.fixture
def headless(tmp_path):
    """A model that fills masks, as bert-base-uncased does, in several files."""
    torch.manual_seed(3)
    folder = tmp_path / "headless"
    BertForMaskedLM(models.bert()).save_pretrained(folder, max_shard_size="40KB")
    models.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("mode", "count"), [("sequence_classification", 2), ("token_classification", 9)])
def test_num_labels_gives_a_head_to_a_model_that_has_none_and_says_so(headless, prepare, tmp_path, capsys, mode, count):
    folder = prepare(headless, mode=mode, num_labels=count)
    assert "gives it a head with random weights, and its answers mean nothing" in capsys.readouterr().out
    assert source_of(folder)["head"] == f"random weights for {count} labels, not trained"
    assert source_of(folder)["sha256"] == {"model.safetensors": sha256(folder / "model.safetensors")}
    weights, body = load_file(folder / "model.safetensors"), BertForMaskedLM.from_pretrained(headless).state_dict()
    assert weights["classifier.weight"].shape[0] == count
    shared = weights.keys() & body.keys()
    assert len(shared) > 30
    assert all(torch.equal(weights[name], body[name]) for name in shared)
    before = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    assert (prepare(headless, mode=mode, num_labels=count) / "model.safetensors").read_bytes() == before


def test_num_labels_changes_nothing_of_a_model_with_a_head(saved, headless, prepare):
    assert same_weights(prepare(saved, num_labels=2), saved)
    other_head = prepare(saved, num_labels=9, mode="token_classification")  # of another kind: no head is made up
    assert load_file(other_head / "model.safetensors").keys() == load_file(saved / "model.safetensors").keys()
    assert names(prepare(headless)) == names(headless) | {"source.json"}
    assert "head" not in source_of(prepare(headless, num_labels=0, mode="question_answering"))


# --- pickles and code -------------------------------------------------------------------------------------------------


class Harmful:
    """What runs code when a pickle is opened: it copies this file."""

    def __init__(self, to: Path):
        self.to = str(to)

    def __reduce__(self):
        return shutil.copy, (__file__, self.to)


def test_a_pickle_is_not_taken_unless_it_is_named(hub, pickled, refusal, prepared):
    hub.push(REPO, pickled)
    message = refusal(REPO)
    assert "pytorch_model.bin" in message
    assert "--pickle" in message
    assert not [request for request in hub.requests if "/resolve/" in request.path]
    assert not prepared.exists()


def test_a_pickle_that_is_named_becomes_safetensors_with_equal_tensors(hub, pickled, saved, prepare):
    hub.push(REPO, pickled)
    folder = prepare(REPO, pickle="pytorch_model.bin")
    converted, original = load_file(folder / "model.safetensors"), load_file(saved / "model.safetensors")
    assert converted.keys() == original.keys()
    assert all(torch.equal(converted[name], original[name]) for name in original)
    assert not list(folder.glob("*.bin"))
    assert same_weights(folder, saved)


def test_a_harmful_pickle_is_refused_and_does_not_run(hub, pickled, tmp_path, refusal, prepared):
    harm = tmp_path / "harm"
    torch.save({"weight": torch.zeros(2), "more": Harmful(harm)}, pickled / "pytorch_model.bin")
    torch.load(pickled / "pytorch_model.bin", weights_only=False)
    assert harm.exists(), "the pickle is not harmful: this test would show nothing"
    harm.unlink()
    hub.push(REPO, pickled)
    assert "holds more than tensors" in refusal(REPO, pickle="pytorch_model.bin")
    assert not harm.exists()
    assert not prepared.exists()


@pytest.mark.parametrize("content", [{"state_dict": {"weight": torch.zeros(2)}}, {}, torch.zeros(2), "weights"])
def test_a_pickle_that_is_no_state_dict_is_refused(pickled, refusal, prepared, content):
    torch.save(content, pickled / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(pickled, pickle="pytorch_model.bin")
    assert not prepared.exists()


def test_a_pickle_that_was_refused_is_not_kept_beside_the_next_one(pickled, prepare, refusal):
    (pickled / "wrong.bin").write_bytes(b"no pickle")
    refusal(pickled, pickle="wrong.bin")
    assert not list(prepare(pickled, pickle="pytorch_model.bin").glob("*.bin"))


def test_a_pickle_that_is_not_there_is_refused_with_what_is_there(pickled, refusal):
    message = refusal(pickled, pickle="model.bin")
    assert "has no file model.bin" in message
    assert "pytorch_model.bin" in message


@pytest.fixture
def with_code(saved, tmp_path):
    """A model whose architecture is its own code."""
    folder = copied(saved, tmp_path / "with_code")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "someones_own"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text("raise SystemExit\n")
    return folder


def test_code_of_a_model_is_downloaded_only_when_it_is_trusted(hub, with_code, refusal, prepare):
    hub.push(REPO, with_code)
    message = refusal(REPO)
    assert "'someones_own'" in message
    assert "`trust_remote_code: true`" in message
    assert not hub.requests_for(".py")
    folder = prepare(REPO, trust_remote_code=True)
    assert (folder / "modeling.py").read_text() == "raise SystemExit\n"


def test_a_model_that_is_trusted_no_longer_loses_its_code(hub, saved, tmp_path, prepare):
    hub.push(REPO, copied(saved, tmp_path / "source"))
    (tmp_path / "source" / "modeling.py").write_text("")
    hub.push(REPO, tmp_path / "source")
    assert "modeling.py" in names(prepare(REPO, trust_remote_code=True))
    assert "modeling.py" not in names(prepare(REPO, trust_remote_code=False))


# --- when the Hub does not give it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["nothing answers", "HF_HUB_OFFLINE is set"])
def test_the_command_says_in_one_line_that_the_hub_is_out_of_reach(tmp_path, reason):
    with socket.socket() as taken:  # bound, but not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        settings = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "home")}
        if reason == "HF_HUB_OFFLINE is set":
            settings["HF_HUB_OFFLINE"] = "1"
        done = command("--model", REPO, "--models", tmp_path / "models", **settings)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: The Hugging Face Hub cannot be reached")
    assert "set handler.model_name to a folder saved with save_pretrained, or to `starter`" in line
    assert not (tmp_path / "models" / "sequence_classification").exists()


def test_a_login_page_in_place_of_the_hub_is_told_as_out_of_reach(hub, refusal):
    hub.portal = True
    assert "cannot be reached" in refusal(REPO)


def test_a_model_that_the_hub_does_not_have_is_named(hub, saved, refusal):
    hub.push(REPO, saved)
    message = refusal("someone/revues")
    assert "no model 'someone/revues'" in message
    assert "spelling" in message


def test_a_gated_model_asks_for_a_login(hub, saved, refusal, prepared):
    hub.push(REPO, saved)
    hub.gated.add(REPO)
    message = refusal(REPO)
    assert f"no model '{REPO}' for you" in message
    assert "`hf auth login`" in message
    assert not prepared.exists()


def test_a_revision_that_a_model_does_not_have_is_named(hub, saved, refusal):
    hub.push(REPO, saved)
    assert f"{REPO} has no revision 'v9'" in refusal(REPO, revision="v9")


# --- one model a folder -----------------------------------------------------------------------------------------------


def test_another_model_under_the_same_name_replaces_the_folder_wholly(hub, saved, other, prepare, prepared):
    hub.push(REPO, other)
    hub.push("someone/else", saved)
    prepare(REPO)
    assert names(prepare("someone/else")) == names(saved) | {"source.json"}
    assert same_weights(prepared, saved)
    assert names(prepared.parent) == {"reviews", *(f"reviews/{name}" for name in names(prepared))}


def test_another_revision_of_a_model_replaces_the_one_there_was(hub, saved, other, prepare):
    hub.push(REPO, other, "v1")
    commit = hub.push(REPO, saved, "v2")
    prepare(REPO, revision="v1")
    folder = prepare(REPO, revision="v2")
    assert source_of(folder)["revision"] == commit
    assert same_weights(folder, saved)


def test_a_preparation_that_fails_leaves_the_model_there_untouched(hub, saved, other, prepare, refusal, prepared):
    hub.push(REPO, saved)
    hub.push("someone/else", other)
    prepare(REPO)
    before = state(prepared)
    hub.cuts[max(path.name for path in other.glob("model-*"))] = CHUNK
    refusal("someone/else")
    assert state(prepared) == before


def test_preparing_the_same_again_asks_nothing_and_changes_nothing(hub, saved, prepare, prepared):
    hub.push(REPO, saved)
    prepare(REPO, revision="main")
    before = state(prepared), prepared.stat().st_mtime_ns
    hub.requests.clear()
    prepare(REPO, revision="main")
    assert not hub.requests
    assert (state(prepared), prepared.stat().st_mtime_ns) == before


# --- from a folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_of_save_pretrained_is_copied(saved, other, prepare, shards):
    source = other if shards else saved
    folder = prepare(source)
    assert names(folder) == names(source) | {"source.json"}
    assert same_weights(folder, source)
    weights = {path.name: sha256(path) for path in source.glob("*.safetensors")}
    licence = "unknown" if shards else "cc-by-4.0"
    assert source_of(folder) == {"source": f"folder {source.name}", "licence": licence, "sha256": weights}


def test_a_folder_that_changed_is_copied_again_and_one_that_did_not_is_not(saved, tmp_path, prepare, prepared):
    source = copied(saved, tmp_path / "source")
    prepare(source)
    before = state(prepared)
    prepare(source)
    assert state(prepared) == before
    (source / "README.md").write_text("# Trained longer\n")
    prepare(source)
    assert (prepared / "README.md").read_text() == "# Trained longer\n"


def without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert",}')


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (functools.partial(without, name="config.json"), "no config.json"),
        (functools.partial(without, name="model-00002-of-00003.safetensors"), "model-00002-of-00003.safetensors"),
        (functools.partial(without, name="model.safetensors.index.json"), "model.safetensors.index.json"),
        (broken_config, "config.json is not valid JSON"),
        (shutil.rmtree, "There is no folder"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(other, tmp_path, refusal, prepared, change, told):
    source = copied(other, tmp_path / "source")
    change(source)
    assert told in refusal(source)
    assert not prepared.exists()


def test_what_is_neither_folder_nor_hub_id_is_refused(refusal):
    assert "'a/b/c' is neither a folder here nor a Hub id" in refusal("a/b/c")
