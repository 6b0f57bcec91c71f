"""A live TorchServe for tests: archives built by the real builder, free ports, stopped by its own pid."""

import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
import yaml

from scripts.build_archive import build
from scripts.configs import ArchiveConfig, merge
from scripts.console import ROOT
from scripts.torchserve import Server, describe, launch, wait_until_ready


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


# what an archive claims that was built without a look at its model
UNPROVEN = {"revision": "", "weights": {}, "built_with": {}, "goldens": []}

PORTS = ("8080", "8081", "8082", "7070", "7071")


def properties(folder: Path, **extra: str) -> Path:
    """The shipped config.properties, on free ports."""
    text = (ROOT / "config.properties").read_text()
    for port, free in zip(PORTS, free_ports(len(PORTS)), strict=True):
        text = text.replace(port, str(free))
    path = folder / "config.properties"
    path.write_text(text + "".join(f"\n{key}={value}" for key, value in extra.items()) + "\n")
    return path


def config(name: str, overlay: dict | None = None) -> ArchiveConfig:
    """The template, eager unless the overlay says otherwise, as compiling takes half a minute."""
    template = yaml.safe_load((ROOT / "model-config.yaml").read_text())
    eager = {"pt2": {"compile": {"enable": False}}}
    return ArchiveConfig(name, merge(merge(template, eager), overlay or {}))


def archive(store: Path, name: str, model_dir: Path, overlay: dict | None = None, version: str = "1.0") -> Path:
    """An archive of a model folder."""
    return build(config(name, overlay), model_dir, store, version)


@dataclass(frozen=True)
class Live:
    """A running server, seen by its clients."""

    server: Server
    run_dir: Path
    inference: str
    management: str
    metrics: str

    @property
    def store(self) -> Path:
        return Path(self.server.store)

    def post(self, model, path="/predictions/{}", **request):
        return requests.post(self.inference + path.format(model), timeout=60, **request)

    def ask(self, model, inputs, **parameters):
        return self.post(model, json={"inputs": inputs, "parameters": parameters})

    def describe(self, model):
        return describe(self.management, model, customized=True)

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in (self.run_dir / "logs").glob("*.log"))


@contextmanager
def serving(folder: Path, store: Path, **extra: str):
    run_dir = folder / "run"
    run_dir.mkdir()
    server = launch(properties(folder, **extra), store, run_dir)
    try:
        wait_until_ready(server, run_dir)
        addresses = server.addresses
        yield Live(server, run_dir, addresses["inference"], addresses["management"], addresses["metrics"])
    finally:
        server.end(run_dir)
