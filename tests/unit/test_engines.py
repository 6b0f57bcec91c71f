"""Each engine against the plain model, and what each refuses to serve."""

import json
import os
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
import torch._inductor.config
import transformers
from hfserve.config import parse_config
from hfserve.engines import ENGINES, build, engine_class
from hfserve.engines.base import Builds
from hfserve.engines.tracing import Positional, examples, prove, sample_of
from hfserve.errors import ConfigError
from hfserve.forms import Call
from hfserve.pipeline import Pipeline
from hfserve.tasks import TASKS
from torch import nn

from tests import models
from tests.texts import random_texts

CPU = torch.device("cpu")
TOLERANCE = 1e-4


class Plain:
    """A task whose model is of any class of transformers; `inputs` are the tensors it would send."""

    Params = dict

    def __init__(self, auto_class, inputs, length=models.MAX_TOKENS, pad_token_id=0):
        self.auto_class = auto_class
        self.pad_token_id = pad_token_id
        self.tensors = {name: torch.ones(2, length, dtype=torch.long) for name in inputs}

    def samples(self):
        return []

    def encode(self, items, params):
        return types.SimpleNamespace(tensors=self.tensors)


def configured(**handler):
    return parse_config({"handler": {"mode": "sequence_classification", **handler}})


def load(folder, engine, task=None, **handler):
    config = configured(**({"engine": engine} if engine in ("eager", "torchscript", "aotinductor") else {}), **handler)
    task = task or TASKS["sequence_classification"](folder, config.handler)
    return engine_class(engine).load(folder, task, config, CPU), task


def batches(engine, task):
    """Other shapes than `load` tries, and the longest there is."""
    generator = torch.Generator().manual_seed(5)
    for rows, length in ((1, 2), (1, 9), (2, 7), (3, 33), (5, 12), (8, models.MAX_TOKENS)):
        ids = torch.randint(4, len(models.VOCABULARY), (rows, length), generator=generator)
        mask = (torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator)).long()
        tensors = {"input_ids": ids.where(mask.bool(), task.pad_token_id), "attention_mask": mask}
        yield {name: tensors.get(name, torch.zeros_like(ids)) for name in sample_of(task)}


def agrees(engine, plain, task, tolerance=TOLERANCE):
    for tensors in batches(engine, task):
        found, wanted = engine.run(tensors), plain.run(tensors)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name], value, atol=tolerance, rtol=tolerance)


def test_every_engine_tells_what_it_offers():
    for name in ENGINES:
        cls = engine_class(name)
        assert cls.name == name
        assert "forward" in cls.offers
        assert ("generate" in cls.offers) == hasattr(cls, "generate")
        assert isinstance(cls, Builds) == (name == "aotinductor")


@pytest.mark.parametrize("handler", [{"save_mode": "torchscript"}, {"engine": "compiled"}])
def test_a_task_that_generates_is_refused_to_an_engine_that_does_not(tmp_path, handler):
    """When the archive is built, and not only when it loads."""
    folder = models.save(tmp_path, head="text_generation")
    config = configured(mode="text_generation", **handler)
    with pytest.raises(ConfigError, match="does not generate, and handler.mode text_generation needs that: .* eager"):
        build(folder, TASKS["text_generation"](folder, config.handler), config, folder, CPU)


def test_a_task_that_generates_is_eager_where_compiling_is_on(tmp_path):
    folder = models.save(tmp_path, head="text_generation")
    config = configured(mode="text_generation")
    assert config.engines == ("compiled", "eager")
    assert Pipeline.load(folder, config, CPU).engine.name == "eager"


def test_the_reference_examples_compile_mode_compiles_before_ready_alone(model_dir):
    """reduce-overhead records CUDA graphs where there is a GPU, and is the default mode elsewhere."""
    content = {"handler": {"mode": "sequence_classification"}, "pt2": {"compile": {"mode": "reduce-overhead"}}}
    pipeline = Pipeline.load(model_dir, parse_config(content), CPU)
    assert pipeline.engine.name == "compiled"
    plain = Pipeline.load(model_dir, configured(engine="eager"), CPU)
    with torch.compiler.set_stance("fail_on_recompile"):  # what is compiled already runs, anything else raises
        for count in (1, 2, 3, 7, 16):
            calls = [Call(text, "", {"top_k": None}) for text in random_texts(count, seed=count)]
            for found, wanted in zip(pipeline.answer(calls), plain.answer(calls), strict=True):
                for one, other in zip(found.results[0], wanted.results[0], strict=True):
                    assert one["score"] == pytest.approx(other["score"], abs=TOLERANCE)


# --- torchscript ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "gpt2"])
def test_one_trace_serves_every_shape(tmp_path, architecture):
    folder = models.save(tmp_path, architecture)
    engine, task = load(folder, "torchscript")
    agrees(engine, load(folder, "eager")[0], task)


HEADS = {"AutoModelForTokenClassification": ["logits"], "AutoModelForQuestionAnswering": ["start_logits", "end_logits"]}


@pytest.mark.parametrize("auto_class", HEADS)
def test_other_heads_are_traced_too(tmp_path, auto_class):
    folder = models.save(tmp_path, num_labels=2)
    config = transformers.AutoConfig.from_pretrained(folder)
    getattr(transformers, auto_class).from_config(config).save_pretrained(folder)
    task = Plain(auto_class, ["input_ids", "attention_mask", "token_type_ids"])
    engine, _ = load(folder, "torchscript", task)
    assert list(engine.outputs) == HEADS[auto_class]
    agrees(engine, load(folder, "eager", task)[0], task)


def test_a_trace_that_keeps_a_shape_is_refused(model_dir, monkeypatch):
    """A model whose Python reads the length: the trace has it as a constant, and would serve wrong answers."""

    class Counting(Positional):
        def forward(self, *tensors):
            return tuple(value * float(tensors[0].shape[1]) for value in super().forward(*tensors))

    monkeypatch.setattr("hfserve.engines.tracing.Positional", Counting)
    with pytest.raises(
        ConfigError, match=r"engine torchscript: at shape \[1, 1\] logits differs by .* compiled or eager"
    ):
        load(model_dir, "torchscript")


def test_a_model_that_cannot_be_traced_is_refused(model_dir, monkeypatch):
    def forward(self, *tensors):
        raise TypeError("no tracing of this")

    monkeypatch.setattr(Positional, "forward", forward)
    with pytest.raises(ConfigError, match="engine torchscript: tracing it raises TypeError: no tracing of this"):
        load(model_dir, "torchscript")


def test_what_is_not_a_number_is_no_agreement(model_dir):
    engine, task = load(model_dir, "eager")

    class Broken:
        name, device = "broken", CPU

        def run(self, tensors):
            return {name: value * float("nan") for name, value in engine.run(tensors).items()}

    with pytest.raises(ConfigError, match="engine broken: at shape .* differs by nan"):
        prove(Broken(), engine.model, examples(sample_of(task), engine.model, task.pad_token_id))


# --- aotinductor ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What an archive of a small BERT holds: compiling takes half a minute, so one for all tests."""
    folder = models.save(tmp_path_factory.mktemp("built"))
    config = configured(engine="aotinductor")
    build(folder, TASKS["sequence_classification"](folder, config.handler), config, folder, CPU)
    return folder


@pytest.fixture
def copy(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "copy"))


def doctor(folder, **target):
    path = folder / "aotinductor.json"
    content = json.loads(path.read_text())
    content["target"] |= target
    path.write_text(json.dumps(content))
    return content


def test_one_compiled_graph_serves_every_shape(built):
    engine, task = load(built, "aotinductor")
    plain, _ = load(built, "eager")
    agrees(engine, plain, task)
    for tensors in batches(engine, task):  # as a slice of something larger lies in memory
        strided = {name: torch.cat([value, value], dim=1)[:, : value.shape[1]] for name, value in tensors.items()}
        torch.testing.assert_close(engine.run(strided), engine.run(tensors))


def test_the_weights_stay_where_they_are(built):
    weights = (built / "model.safetensors").stat().st_size
    assert (built / "aotinductor.safetensors").stat().st_size < weights / 10
    record = json.loads((built / "aotinductor.json").read_text())
    written = {name for file, name in record["constants"].values() if file == "aotinductor.safetensors"}
    counted_out = {f"model.bert.embeddings.{name}" for name in ("position_ids", "token_type_ids")}
    assert written <= counted_out  # what a model computes when it is made, and no weight
    assert len(record["constants"]) - len(written) > 30


def test_loading_leaves_no_files_behind_and_the_environment_as_it_was(built, monkeypatch, tmp_path):
    for before in (str(tmp_path), None):
        if before:
            monkeypatch.setenv("TMPDIR", before)
        else:
            monkeypatch.delenv("TMPDIR")
        engine, _ = load(built, "aotinductor")
        assert os.environ.get("TMPDIR") == before
        assert not list(tmp_path.iterdir())
        del engine


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ({"cpu_features": ["avx2", "avx9000"]}, "a CPU with avx9000.*, which this one lacks"),
        ({"torch_version": "2.1.0"}, "torch_version '2.1.0', and this is '"),
        ({"machine": "riscv64"}, "machine 'riscv64', and this is"),
        ({"device": "cuda", "gpu": "A GPU (9, 0)"}, "device 'cuda', and this is 'cpu'"),
        ({"precision": "bf16"}, "precision 'bf16', and this is 'fp32'"),
        ({"mode": "token_classification"}, "mode 'token_classification', and this is"),
        ({"vectors": "AVX1024"}, "vectors 'AVX1024'"),
    ],
)
def test_what_was_built_for_something_else_is_refused(copy, target, told):
    doctor(copy, **target)
    with pytest.raises(ConfigError, match=f"was built for {told}.*make archive.*handler.engine"):
        load(copy, "aotinductor")


def test_a_cpu_that_has_more_than_it_was_built_for_serves(copy):
    doctor(copy, cpu_features=[])
    load(copy, "aotinductor")


@pytest.mark.parametrize("name", ["aotinductor.pt2", "aotinductor.json"])
def test_files_that_are_missing_are_told_with_what_makes_them(copy, name):
    (copy / name).unlink()
    with pytest.raises(ConfigError, match="holds no aotinductor.pt2 .*make archive"):
        load(copy, "aotinductor")


@pytest.mark.parametrize("content", ["{", "[]", '{"target": {}}'])
def test_a_record_that_is_none_is_refused(copy, content):
    (copy / "aotinductor.json").write_text(content)
    with pytest.raises(ConfigError, match="aotinductor.json is not as this version writes it"):
        load(copy, "aotinductor")


def test_building_without_a_compiler_says_so(model_dir, tmp_path):
    config = configured(engine="aotinductor")
    task = TASKS["sequence_classification"](model_dir, config.handler)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ConfigError, match=r"there is no C\+\+ compiler here: install g\+\+"),
    ):
        build(model_dir, task, config, tmp_path, CPU)


def test_other_engines_build_nothing(model_dir, tmp_path):
    config = configured()
    build(model_dir, TASKS["sequence_classification"](model_dir, config.handler), config, tmp_path, CPU)
    assert not list(tmp_path.iterdir())


# --- neuron -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["neuron", "neuronx"])
def neuron(request, monkeypatch):
    """AWS's package with the trace of its compiler replaced: it takes the traced shape and no other."""

    def trace(module, inputs):
        traced = torch.jit.trace(module, inputs, check_trace=False)

        def call(*tensors):
            assert [tensor.shape for tensor in tensors] == [tensor.shape for tensor in inputs]
            return traced(*tensors)

        return call

    monkeypatch.setitem(sys.modules, f"torch_{request.param}", types.SimpleNamespace(trace=trace))
    return request.param


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("batch_size", [None, 4])
def test_any_shape_is_fitted_into_the_traced_one(tmp_path, neuron, batch_size):
    folder = models.save(tmp_path)
    engine, task = load(folder, neuron, hardware=neuron, max_length=models.MAX_TOKENS, batch_size=batch_size)
    agrees(engine, load(folder, "eager")[0], task)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_padding_of_outputs_by_token_is_cut_off(tmp_path, neuron):
    folder = models.save(tmp_path, num_labels=2)
    task = Plain("AutoModelForTokenClassification", ["input_ids", "attention_mask"])
    handler = {"hardware": neuron, "max_length": models.MAX_TOKENS, "batch_size": 2}
    engine, _ = load(folder, neuron, task, **handler)
    tensors = {name: torch.ones(3, 10, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    assert engine.run(tensors)["logits"].shape == (3, 10, 2)


@pytest.mark.parametrize(("name", "machine"), [("neuron", "Inf1"), ("neuronx", "Inf2 or Trn1")])
def test_without_the_package_of_the_accelerator_it_says_which(model_dir, name, machine):
    with pytest.raises(ConfigError, match=f"{name!r} needs the package torch-{name},.*{machine} machine, or remove"):
        load(model_dir, name, hardware=name, max_length=32)


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["eager", "torchscript"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_answer_in_fp32(model_dir, engine, precision):
    lower, task = load(model_dir, engine, precision=precision)
    agrees(lower, load(model_dir, "eager")[0], task, tolerance=0.1)


def test_generate_returns_sequences_on_the_cpu(tmp_path):
    folder = models.save(tmp_path, "gpt2")
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    engine, _ = load(folder, "eager", Plain("AutoModelForCausalLM", ["input_ids", "attention_mask"], pad_token_id=3))
    tensors = {name: torch.ones(2, 4, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    sequences = engine.generate(tensors, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert sequences.shape == (2, 7)
    assert torch.equal(sequences[0], sequences[1])


def test_better_transformer_is_sdpa(model_dir):
    engine, _ = load(model_dir, "eager", BetterTransformer=True)
    assert engine.model.config._attn_implementation == "sdpa"


def test_model_parallel_without_a_gpu_serves_on_the_cpu_and_says_so(model_dir, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine, task = load(model_dir, "eager", model_parallel=True)
    assert "there is no GPU here: the CPU serves" in caplog.text
    agrees(engine, load(model_dir, "eager")[0], task)


def test_model_parallel_needs_accelerate(model_dir, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("hfserve.engines.base.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package accelerate.*pip install accelerate"):
        load(model_dir, "eager", model_parallel=True)


def test_the_positional_model_has_no_parameters_of_its_own(model_dir):
    engine, _ = load(model_dir, "eager")
    assert isinstance(engine.model, nn.Module)
    wrapped = Positional(engine.model, ["input_ids"], ["logits"])
    assert {name.removeprefix("model.") for name, _ in wrapped.named_parameters()} == dict(
        engine.model.named_parameters()
    ).keys()
