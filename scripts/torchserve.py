"""TorchServe as a process: started with an environment of its own, watched until its models answer, stopped whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from scripts.addresses import Addresses
from scripts.console import MODEL_STORE, CommandError, console
from scripts.java import java_environment

CLOCK_STEP = 5  # seconds by which a process's start time may seem to move
DEATHS = 3  # of a worker without a traceback until we give up
PATIENCE = 900  # seconds; a worker that loads longer than its startupTimeout is given up by TorchServe before


local = requests.Session()
local.trust_env = False  # a proxy of this machine's user has no business between two of its own processes


@dataclass(frozen=True)
class Server:
    """A server we started. `created` is its process's start time, so that a reused pid is not taken for it."""

    pid: int
    created: float
    scratch: str  # its TMPDIR: pid file, sockets, unpacked archives
    archives: dict[str, list[int]]  # name -> size and time, to see whether the store has changed since
    addresses: dict[str, Any] = field(default_factory=dict)
    store: str = str(MODEL_STORE)

    @classmethod
    def find(cls, run_dir: Path) -> Server | None:
        """Return the server a run folder knows of, if it lives; what a dead one left is removed."""
        path = run_dir / "server.json"
        if not path.exists():
            return None
        server = cls(**json.loads(path.read_text(encoding="utf-8")))
        if server.lives():
            return server
        server.end(run_dir)
        return None

    def lives(self) -> bool:
        """Whether its process runs. The start time may differ a little: it is reckoned from a clock that can be set."""
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.created) < CLOCK_STEP
        except psutil.NoSuchProcess:
            return False

    def note(self, run_dir: Path) -> None:
        """Write down that this server runs."""
        (run_dir / "server.json").write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def end(self, run_dir: Path) -> None:
        """Stop the server, its workers too, and remove what it left in its TMPDIR."""
        if self.lives():
            process = psutil.Process(self.pid)
            family = [process, *process.children(recursive=True)]
            process.terminate()  # TorchServe ends its workers itself, when it is given the time
            _, left = psutil.wait_procs(family, timeout=20)
            for one in left:
                one.kill()
        shutil.rmtree(self.scratch, ignore_errors=True)
        (run_dir / "server.json").unlink(missing_ok=True)


def archives_in(store: Path) -> dict[str, list[int]]:
    """Return the archives of a store by model name, with size and time. Raises CommandError where there is none."""
    files = archive_files(store)
    if not files:
        raise CommandError(f"There is no archive in {store}: build one with `make archive`.")
    return {name: fingerprint(path) for name, path in files.items()}


def archive_files(store: Path) -> dict[str, Path]:
    """Return the archives of a store by model name. Raises CommandError where two have the same."""
    found: dict[str, Path] = {}
    for path in sorted(store.glob("[!.]*.mar")):  # TorchServe passes over hidden files too
        name = _model_name(path)
        if name in found:
            raise CommandError(f"Two archives in {store} serve as {name!r}, {path.name} is one: take one of them out.")
        found[name] = path
    return found


def fingerprint(archive: Path) -> list[int]:
    """Return an archive's size and time, which tell whether it has changed."""
    return [archive.stat().st_size, archive.stat().st_mtime_ns]


def _model_name(archive: Path) -> str:
    """Return the name that an archive is served by, whatever its file is called."""
    try:
        with zipfile.ZipFile(archive) as mar:
            return str(json.loads(mar.read("MAR-INF/MANIFEST.json"))["model"]["modelName"])
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise CommandError(f"{archive} is no model archive: build it again with `make archive`.") from error


def launch(config: Path, store: Path, run_dir: Path) -> Server:
    """Start TorchServe in the background. Raises CommandError where it cannot start."""
    addresses = Addresses.read(config)
    archives = archives_in(store)
    if taken := addresses.taken():
        raise CommandError(
            f"Another program listens on {', '.join(taken)}: stop it, or change the ports in {os.path.relpath(config)}."
        )
    logs = run_dir / "logs"
    shutil.rmtree(logs, ignore_errors=True)  # the reason of a failure is looked for in this run's logs alone
    logs.mkdir(parents=True)
    scratch = tempfile.mkdtemp(prefix="hfserve-")
    words = [sys.executable, "-m", "ts.model_server", "--start", "--ncs", "--ts-config", str(config.resolve())]
    words += ["--model-store", str(store.resolve()), "--models", "all"]
    with (logs / "console.log").open("w") as log:
        subprocess.run(
            words, cwd=run_dir, env=_environment(scratch, logs, run_dir), stdout=log, stderr=log, check=False
        )
    try:
        pid = int((Path(scratch) / ".model_server.pid").read_text())
        created = psutil.Process(pid).create_time()
    except (FileNotFoundError, psutil.NoSuchProcess):
        shutil.rmtree(scratch)
        raise CommandError(f"TorchServe did not start: {reason(run_dir)}") from None
    server = Server(pid, created, scratch, archives, asdict(addresses), str(store.resolve()))
    server.note(run_dir)
    return server


def _environment(scratch: str, logs: Path, run_dir: Path) -> dict[str, str]:
    """TorchServe's environment: a TMPDIR of its own, our Java, and compiled code kept from start to start."""
    own = {
        "TMPDIR": scratch,
        "TEMP": scratch,  # what becomes Java's java.io.tmpdir
        "LOG_LOCATION": str(logs.resolve()),
        "METRICS_LOCATION": str(logs.resolve()),
        "TORCHINDUCTOR_CACHE_DIR": str((run_dir / "compiled").resolve()),
        "HF_HUB_OFFLINE": "1",  # an archive has all it needs; nothing is looked up while serving
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    # threads of torch that wait asleep: those of two workers that spin take the cores from each other's work, and what
    # takes one worker 0.15 s takes each of two 1.6 s on two cores, where it takes 0.23 s with this
    unless_set = {"OMP_WAIT_POLICY": "passive"}
    inherited = {name: value for name, value in os.environ.items() if name not in ("TS_CONFIG_FILE", "LOG_CONFIG")}
    return unless_set | inherited | own | java_environment()


def wait_until_ready(server: Server, run_dir: Path) -> None:
    """Return when every model answers. Raises CommandError with the log's reason where one never will."""
    waiting = sorted(server.archives)
    with console.status("") as status:
        for seconds in ticks():
            status.update(f"Loading {', '.join(waiting)} ({seconds:.0f} s)")
            waiting = [name for name in waiting if not answers(server.addresses["management"], name)]
            if not waiting:
                return
            if not server.lives():
                raise CommandError(f"TorchServe ended: {reason(run_dir)}")
            if refused := _refused(run_dir):
                raise CommandError(f"TorchServe does not take an archive: {refused}")
            if failed := reason(run_dir, only_workers=True):
                raise CommandError(f"A model did not load: {failed}")
    raise CommandError(f"{', '.join(waiting)} did not load in {PATIENCE} s: see {run_dir}/logs/model_log.log.")


def _refused(run_dir: Path) -> str:
    """Return why TorchServe passed over an archive of the store, and "" if it did not: it serves the others then."""
    lines = iter(_log(run_dir, "ts_log.log", ""))
    told = next((line for line in lines if "Failed to load model: " in line), "")
    return told and f"{told.rpartition('Failed to load model: ')[2]}: {next(lines, '')}"


def ticks() -> Iterator[float]:
    """Yield the seconds that have passed, a few times a second, until our patience ends."""
    start = time.monotonic()
    while (passed := time.monotonic() - start) < PATIENCE:
        yield passed
        time.sleep(0.3)


def answers(management: str, model: str) -> bool:
    """Whether a model describes itself, which takes a worker that has loaded it."""
    try:
        if not any(worker["status"] == "READY" for worker in describe(management, model)["workers"]):
            return False
        return "mode" in describe(management, model, customized=True).get("customizedMetadata", {})
    except (requests.RequestException, KeyError, ValueError):
        return False


def describe(management: str, model: str, customized: bool = False) -> dict[str, Any]:
    """Ask the management API for a model, `name` or `name/version`; customized asks its worker too."""
    query = {"customized": "true"} if customized else {}
    reply = local.get(f"{management}/models/{model}", params=query, timeout=30)
    reply.raise_for_status()
    content: dict[str, Any] = reply.json()[0]
    return content


def reason(run_dir: Path, only_workers: bool = False, worker: str = "") -> str:
    """Return why the server or a worker died, from its logs: the last line of the last traceback; "" if none did.

    `worker`, such as W-9000-reviews_2.0, looks at that one alone; TorchServe never gives its number again.
    """
    names = ["model_log.log"] if only_workers else ["model_log.log", "ts_log.log", "console.log"]
    for name in names:
        lines = _log(run_dir, name, worker)
        told = [match[1] for line in lines if (match := ERROR_LINE.search(line))]
        died = not only_workers or any("Backend worker process died" in line for line in lines)
        if told and died:
            return told[-1]
    if only_workers:
        return _dies_silently(run_dir, worker)
    last = (run_dir / "logs" / "console.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"{''.join(last)} (see {run_dir}/logs)"


def _log(run_dir: Path, name: str, worker: str) -> list[str]:
    path = run_dir / "logs" / name
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [line for line in lines if worker in line]


def _dies_silently(run_dir: Path, worker: str) -> str:
    """A worker that dies again and again without a traceback was killed from outside."""
    died = sum("Retry worker:" in line for line in _log(run_dir, "ts_log.log", worker))
    return f"its worker was killed {died} times; is there enough memory?" if died >= DEATHS else ""


# `hfserve.errors.ConfigError: handler.mode ...` behind the logger's prefix, or a Java exception
ERROR_LINE = re.compile(
    r"(?:MODEL_LOG - |^|Caused by: )((?:[\w.]+\.)?\w*(?:Error|Exception|Exit|Interrupt)\w*(?:: .+)?)$"
)
