"""The model compiled ahead of time by AOTInductor: `make archive` compiles it, a worker has it in milliseconds.

The archive gets the machine code alone (aotinductor.pt2, 2 MB); its weights are those of the archive's safetensors,
read in place, so that the workers of a machine share them. What is computed when a model is made, and so is in no
weights file, goes into aotinductor.safetensors. aotinductor.json tells what all of it was built for.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hfserve.config import Config
from hfserve.engines.base import PRECISIONS, Loadable, Tensors, load_model
from hfserve.engines.tracing import (
    TRACED_SHAPE,
    Positional,
    example,
    examples,
    first_line,
    positional,
    prove,
    run_positional,
    sample_of,
    unfit,
)
from hfserve.errors import ConfigError

CODE = "aotinductor.pt2"
CONSTANTS = "aotinductor.safetensors"
RECORD = "aotinductor.json"

REBUILD = "build it here with `make archive`, or set handler.engine to compiled."


@dataclass(frozen=True)
class Target:
    """What code is compiled for. Each field but `cpu_features` has to be the same where it runs."""

    torch_version: str
    system: str
    machine: str
    device: str
    gpu: str | None  # name and compute capability
    mode: str
    precision: str
    pad_token_id: int
    vectors: str  # such as AVX512; torch's name of the CPU's vector instructions
    cpu_features: Sequence[str]  # it may use any of them; other CPUs may have more

    @classmethod
    def here(cls, task: Loadable, config: Config, device: torch.device) -> Target:
        """What would be compiled for on this machine."""
        cuda = device.type == "cuda"
        return cls(
            torch_version=torch.__version__,
            system=platform.system(),
            machine=platform.machine(),
            device=device.type,
            gpu=f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}" if cuda else None,
            mode=config.handler.mode,
            precision=config.handler.precision,
            pad_token_id=task.pad_token_id,
            vectors=torch.backends.cpu.get_cpu_capability(),
            cpu_features=sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True),
        )

    def check(self, here: Target) -> None:
        """Raises ConfigError where what was built does not run `here`, saying what differs."""
        if lacking := sorted({*self.cpu_features} - {*here.cpu_features}):
            raise ConfigError(f"{CODE} was built for a CPU with {', '.join(lacking)}, which this one lacks: {REBUILD}")
        for spec in fields(self):
            built, found = getattr(self, spec.name), getattr(here, spec.name)
            if spec.name != "cpu_features" and built != found:
                raise ConfigError(f"{CODE} was built for {spec.name} {built!r}, and this is {found!r}: {REBUILD}")


@dataclass(frozen=True)
class Record:
    """aotinductor.json."""

    target: Target
    inputs: Mapping[str, str]  # name -> dtype, in the order of the graph
    outputs: Sequence[str]
    constants: Mapping[str, Sequence[str]]  # name in the graph -> file, name in the file

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read it from a model's folder. Raises ConfigError."""
        if not (folder / RECORD).exists() or not (folder / CODE).exists():
            raise ConfigError(f"The archive holds no {CODE} for engine aotinductor: {REBUILD}")
        try:
            content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            return cls(**{**content, "target": Target(**content["target"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{RECORD} is not as this version writes it ({first_line(error)}): {REBUILD}") from error

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


class Aotinductor:
    """Runs the compiled graph. One graph serves every shape; `build` proves it."""

    name = "aotinductor"
    offers: ClassVar[frozenset[str]] = frozenset({"forward"})

    def __init__(
        self,
        loader: Any,  # noqa: ANN401  # a class of torch._C
        constants: Tensors,
        record: Record,
        device: torch.device,
        load: Callable[[], nn.Module],
    ) -> None:
        self.loader = loader
        self.load_plain = load
        self.constants = constants  # the graph points into them: they live as long as it does
        self.inputs = {name: getattr(torch, dtype) for name, dtype in record.inputs.items()}
        self.outputs = record.outputs
        self.device = device
        self.loader.load_constants(constants, False, True, True, False)  # all of them, ours to keep, nothing copied

    @classmethod
    def build(cls, model_dir: Path, task: Loadable, config: Config, into: Path, device: torch.device) -> None:
        """See `Builds.build`. It takes half a minute, and refuses a model that it cannot compile for every shape."""
        _check_compiler()
        model = load_model(model_dir, task, config, device)
        sample = sample_of(task)
        plain = positional(model, sample, device)
        rows, length = TRACED_SHAPE
        values = _compile(plain, example(sample, rows, length, model, task.pad_token_id), into / CODE, config, device)
        loader = _load_code(into / CODE, device)
        constants = {name: values[name] for name in loader.get_constant_fqns()}
        record = Record(
            target=Target.here(task, config, device),
            inputs={name: str(value.dtype).removeprefix("torch.") for name, value in sample.items()},
            outputs=plain.outputs,
            constants=_place(constants, model_dir, into),
        )
        prove(cls(loader, constants, record, device, lambda: model), model, examples(sample, model, task.pad_token_id))
        record.write(into)

    @classmethod
    def load(cls, model_dir: Path, task: Loadable, config: Config, device: torch.device) -> Aotinductor:
        """See `Engine.load`. What was built for another machine or configuration is a ConfigError."""
        record = Record.read(model_dir)
        record.target.check(Target.here(task, config, device))
        constants = _read_constants(record, model_dir, PRECISIONS[config.handler.precision], device)
        load = partial(load_model, model_dir, task, config, device)
        return cls(_load_code(model_dir / CODE, device), constants, record, device, load)

    def run(self, tensors: Tensors) -> Tensors:
        """See `Engine.run`."""
        return run_positional(self._call, self.inputs, self.outputs, tensors, self.device)

    def plain(self) -> nn.Module:
        """See `Engine.plain`: loaded again, with the graph's weights then put in the place of its own."""
        model = self.load_plain()
        shared = {name.removeprefix("model."): value for name, value in self.constants.items()}
        own = model.state_dict()
        model.load_state_dict({name: value for name, value in shared.items() if name in own}, strict=False, assign=True)
        model.tie_weights()  # type: ignore[operator]  # what was tied has been put in one of its places
        return model.requires_grad_(requires_grad=False)

    def _call(self, *tensors: Tensor) -> Sequence[Tensor]:
        found: Sequence[Tensor] = self.loader.boxed_run(list(tensors))
        return found


def _check_compiler() -> None:
    from torch._inductor import cpp_builder, exc  # a second of imports that only building needs

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise ConfigError(
            "Engine aotinductor compiles the model when the archive is built, and there is no C++ compiler here: "
            "install g++, or set handler.engine to eager."
        ) from error


def _compile(plain: Positional, batch: Tensors, into: Path, config: Config, device: torch.device) -> dict[str, Tensor]:
    """Write the machine code; return the values of what it calls constants, by their names in the graph."""
    import torch._inductor
    from torch.fx.experimental import _config as shapes

    rows = torch.export.Dim("rows", min=1)
    # a model that learnt its positions has so many; torch.export wants to be told
    length = torch.export.Dim("length", min=1, max=getattr(plain.model.config, "max_position_embeddings", None))
    dims = tuple({0: rows, 1: length} if tensor.dim() == 2 else {0: rows} for tensor in batch.values())
    # backed_size_oblivious: a size may turn out to be 1, which would else be a graph of its own
    with warnings.catch_warnings(), torch.no_grad(), shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", FutureWarning)  # torch copies classes of its own that are on their way out
        try:
            inputs = tuple(tensor.to(device) for tensor in batch.values())
            program = torch.export.export(plain, inputs, dynamic_shapes=(dims,))
            options = {"aot_inductor.package_constants_in_so": False, **(config.compile.options or {})}
            torch._inductor.aoti_compile_and_package(program, package_path=str(into), inductor_configs=options)
        except Exception as error:  # both run the model's own Python: anything may come out of it
            raise unfit(Aotinductor.name, f"compiling it raises {first_line(error)}") from error
    values: dict[str, Any] = {**program.state_dict, **program.constants}
    return {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}


def _load_code(path: Path, device: torch.device) -> Any:  # noqa: ANN401  # a class of torch._C
    """Load the machine code. torch's own function for it imports the compiler first, which takes a second or two."""
    with _temporary_directory(keep=device.type != "cpu"):
        return torch._C._aoti.AOTIModelPackageLoader(
            str(path), "model", False, 1, -1 if device.index is None else device.index
        )


@contextmanager
def _temporary_directory(keep: bool) -> Iterator[None]:
    """Let the loader unpack where it is cleared away at once: a worker that is killed could not do it later.

    `keep`: kernels of a GPU are read from there when they first run.
    """
    if keep:
        yield
        return
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder  # the loader knows no other way to be told
        try:
            yield
        finally:
            del os.environ["TMPDIR"]
            if before is not None:
                os.environ["TMPDIR"] = before


def _place(constants: Tensors, model_dir: Path, into: Path) -> dict[str, Sequence[str]]:
    """Find each constant in the model's weights; those that are not there are written to a file beside them."""
    places: dict[str, Sequence[str]] = {}
    for path in sorted({*model_dir.glob("*.safetensors")} - {model_dir / CONSTANTS}):
        with safe_open(path, framework="pt") as weights:
            names = set(weights.keys())
            for constant, value in constants.items():
                name = constant.removeprefix("model.")
                if name in names and torch.equal(weights.get_tensor(name).to(value), value):
                    places[constant] = (path.name, name)
    rest = {name: value.contiguous().cpu() for name, value in constants.items() if name not in places}
    if rest:
        save_file(rest, into / CONSTANTS)
    return places | {name: (CONSTANTS, name) for name in rest}


def _read_constants(record: Record, folder: Path, dtype: torch.dtype, device: torch.device) -> Tensors:
    """Constants by their names in the graph; on the CPU, in the precision of the file, they are the mapped file."""
    files: dict[str, Any] = {}
    found = {}
    for constant, (file, name) in record.constants.items():
        if file not in files:
            files[file] = safe_open(folder / file, framework="pt")
        value = files[file].get_tensor(name)
        found[constant] = value.to(device, dtype if file != CONSTANTS and value.is_floating_point() else value.dtype)
    return found
