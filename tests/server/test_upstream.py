"""TorchServe's own Huggingface_Transformers example moves over: its configuration, its labels and its kind of samples.

The example's model-config.yaml is taken as it is written for each mode; the models are tiny ones of the same classes.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from transformers import BertForMaskedLM, DistilBertForQuestionAnswering, GPT2LMHeadModel

from scripts.build_archive import build
from scripts.configs import archive_config
from scripts.console import ARTIFACTS
from scripts.download_models import prepare
from scripts.swap import content_type
from tests import models
from tests.hub_stand_in import Hub, point_client_at
from tests.serving import serving

MODES = {
    "sequence_classification": {"model_name": "bert-base-uncased", "num_labels": 2, "embedding_name": "bert"},
    "token_classification": {"model_name": "bert-base-uncased", "num_labels": 9, "embedding_name": "bert"},
    "question_answering": {
        "model_name": "distilbert-base-cased-distilled-squad",
        "num_labels": 0,
        "embedding_name": "distilbert",
    },
    "text_generation": {"model_name": "gpt2", "num_labels": 0, "embedding_name": "gpt2"},
}
COMMON = {
    "do_lower_case": True,
    "save_mode": "pretrained",
    "max_length": 150,
    "captum_explanation": True,
    "BetterTransformer": False,
    "model_parallel": False,
}
COMPILE = {"enable": True, "backend": "inductor", "mode": "reduce-overhead"}
ENTITIES = ["O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
NAMES = {
    "sequence_classification": {"0": "Not Accepted", "1": "Accepted"},
    "token_classification": {"label_list": f"[{', '.join(ENTITIES)}]"},
}

# the example's forms, as the lines of its sample files are written: one or two for each mode
SAMPLES = {
    "sequence_classification": [
        "The ferry to the island leaves at noon. \n",
        '{"text":"The ferry left an hour late &lt;again&gt;, and nobody told us why.", "target":1} \n',
        "{'text': \"It's late\", 'target': 0}",
    ],
    "token_classification": [
        "The ferry to the island leaves at noon. \n",
        '{"text":"The ferry to the island leaves at noon.", "target":(1,2)} \n',
    ],
    "question_answering": [
        '{"question" :"When does the ferry leave", "context": "the ferry leaves at noon, it is never late"}\n',
        '{"question" :"When does the ferry leave", "context": "the ferry leaves at noon", "target":0}\n',
    ],
    "text_generation": [
        "Tomorrow the ferry leaves at noon and we are going to ",
        '{"text":"The ferry to the island leaves at noon.", "target":1} \n',
    ],
}

# Compiling takes half a minute: once, with nothing changed. Others differ in one key.
CHANGES = {
    "sequence_classification": {},
    "token_classification": {"pt2": {"compile": {**COMPILE, "enable": False}}},
    "question_answering": {"save_mode": "torchscript"},
    "text_generation": {},  # which is not compiled
}
ENGINES = dict(zip(MODES, ["compiled", "eager", "torchscript", "eager"], strict=True))


def saved(folder: Path, model: torch.nn.Module, framed: bool = True) -> Path:
    model.save_pretrained(folder)
    tokenizer = models.tokenizer(framed)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return folder


def hub_models(folder: Path) -> dict[str, Path]:
    """The models that the example names, each of the class it is of on the Hub: the first has no trained head."""
    torch.manual_seed(0)
    bert, distilbert, gpt2 = models.bert(), models.distilbert(num_labels=2), models.gpt2()
    bert.max_position_embeddings = distilbert.max_position_embeddings = gpt2.n_positions = 512
    return {
        "bert-base-uncased": saved(folder / "bert", BertForMaskedLM(bert)),
        "distilbert-base-cased-distilled-squad": saved(folder / "squad", DistilBertForQuestionAnswering(distilbert)),
        "gpt2": saved(folder / "gpt2", GPT2LMHeadModel(gpt2), framed=False),
    }


def example(folder: Path, mode: str) -> Path:
    """The example's files for a mode: its model-config.yaml, and its index_to_name.json where it has one."""
    change = dict(CHANGES[mode])
    pt2 = change.pop("pt2", {"compile": COMPILE})
    handler = {**MODES[mode], "mode": mode, **COMMON, **change}
    folder.mkdir()
    config = folder / "model-config.yaml"
    config.write_text(yaml.safe_dump({"minWorkers": 1, "maxWorkers": 1, "handler": handler, "pt2": pt2}))
    if mode in NAMES:
        (folder / "index_to_name.json").write_text(json.dumps(NAMES[mode]))
    return config


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    with Hub() as hub, pytest.MonkeyPatch.context() as patch:
        point_client_at(hub, patch)
        for name, path in hub_models(folder / "hub").items():
            hub.push(name, path)
        for mode in MODES:
            config = archive_config(example(folder / mode, mode))
            build(config, prepare(config.name, config.content["handler"], models=folder / "models"), folder / "store")
    with serving(folder, folder / "store") as server:
        yield server


def send(live, mode: str, file: Path, *options: str, route: str = "predictions") -> tuple[int, str]:
    """As the example's README does: a body without a content type."""
    words = ["curl", "-sS", "-w", "%{http_code}", *options, "-X", "POST", f"{live.inference}/{route}/{mode}"]
    done = subprocess.run([*words, "-T", str(file)], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout[-3:]), done.stdout[:-3]


@pytest.fixture
def answered(live, tmp_path):
    """Send one of the example's samples, and return the body of a 200."""

    def answered(mode: str, sample: str, *options: str, route: str = "predictions") -> str:
        (tmp_path / "sample_text.txt").write_text(sample)
        status, body = send(live, mode, tmp_path / "sample_text.txt", *options, route=route)
        assert status == 200, body
        return body

    return answered


CASES = [(mode, sample) for mode, samples in SAMPLES.items() for sample in samples]
FIELDS = {
    "sequence_classification": {"label", "score"},
    "token_classification": {"entity_group", "score", "word", "start", "end"},
    "question_answering": {"answer", "score", "start", "end"},
    "text_generation": {"generated_text"},
}


@pytest.mark.parametrize(("mode", "sample"), CASES)
def test_its_samples_get_answers(answered, mode, sample):
    answer = json.loads(answered(mode, sample))
    for record in answer if isinstance(answer, list) else [answer]:
        assert record.keys() == FIELDS[mode]


def test_the_names_of_its_two_shapes_are_the_labels(live, answered):
    (record,) = json.loads(answered("sequence_classification", SAMPLES["sequence_classification"][0]))
    assert record["label"] in ("Not Accepted", "Accepted")
    answer = live.ask("token_classification", "the ferry leaves", aggregation_strategy="none", ignore_labels=[])
    assert {record["entity"] for record in answer.json()} <= set(ENTITIES)
    described = live.describe("token_classification")["customizedMetadata"]
    assert described["labels"] == ENTITIES


@pytest.mark.parametrize(("mode", "sample"), CASES)
def test_its_short_answers(answered, mode, sample):
    short = answered(mode, sample, "-H", "Accept: text/plain")
    if mode == "sequence_classification":
        assert short in NAMES[mode].values()
    elif mode == "token_classification":
        assert all(len(pair) == 2 for pair in json.loads(short))
    elif mode == "question_answering":
        assert short
        assert short in json.loads(sample)["context"]
    else:
        assert not short.startswith(("{", "[{"))


IMPORTANCES = {
    "sequence_classification": {"importances": "delta"},
    "token_classification": {"importances": "delta"},
    "question_answering": {"importances_answer_start": "delta_start", "importances_answer_end": "delta_end"},
    "text_generation": {"importances": "delta"},
}


@pytest.mark.parametrize(("mode", "sample"), [(mode, sample) for mode, sample in CASES if "target" in sample])
def test_its_samples_are_explained_in_its_shape(answered, mode, sample):
    """Those for Captum, target included: tokens, their importances, and by how much these miss the score."""
    as_example = ("-H", "Accept: application/vnd.torchserve+json")
    answer = json.loads(answered(mode, sample, *as_example, route="explanations"))
    assert answer.keys() == {"words", *IMPORTANCES[mode], *IMPORTANCES[mode].values()}
    for importances, delta in IMPORTANCES[mode].items():
        scores, gap = answer[importances], answer[delta]
        if isinstance(gap, list):  # one for each entity or token that is explained; here it is one
            (scores,), (gap,) = scores, gap
        assert len(scores) == len(answer["words"])
        assert sum(score**2 for score in scores) == pytest.approx(1)
        assert abs(gap) < 1


@pytest.mark.parametrize("mode", MODES)
def test_its_configuration_holds(live, mode):
    described = live.describe(mode)["customizedMetadata"]
    assert described["engine"] == ENGINES[mode]
    assert described["max_tokens"] == 150
    weights = described["weights"]
    assert weights["source"] == MODES[mode]["model_name"]
    assert weights["licence"] == "apache-2.0"
    assert weights.get("head", "").startswith("random") == ("classification" in mode)


def test_a_worker_warns_once_of_keys_that_mean_less(live):
    assert "Traceback" not in live.log()
    log = (live.run_dir / "logs" / "model_log.log").read_text()
    assert log.count("Keys of `handler:` that mean less") == len(MODES)


@pytest.mark.parametrize(
    ("mode", "sample"),
    [(path.parents[1].name, path) for path in sorted(ARTIFACTS.glob("*/samples/sample_*"))],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_shipped_samples_get_answers(live, mode, sample):
    """As `make swap` sends them, and as curl does."""
    typed = live.post(mode, data=sample.read_bytes(), headers={"Content-Type": content_type(sample)})
    assert typed.status_code == 200, typed.text
    assert send(live, mode, sample)[0] == 200
