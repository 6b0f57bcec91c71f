"""Replace a running model by a newly built archive; no request fails meanwhile."""

from __future__ import annotations

import mimetypes
import re
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import requests
import typer

from scripts.build_archive import build, check_version
from scripts.configs import ArchiveConfig, archive_config
from scripts.console import ARTIFACTS, CommandError, command, console, run
from scripts.download_models import prepare
from scripts.server import RUN_DIR, RunOption
from scripts.torchserve import PATIENCE, Server, answers, archive_files, describe, fingerprint, local, reason, ticks

app = command()


def swap(server: Server, run_dir: Path, config: ArchiveConfig, model_dir: Path, wanted: str | None) -> tuple[str, str]:
    """Put a new version in the place of the running one; returns both. Raises CommandError.

    Clients notice nothing before `set_default`, and what fails until then takes the new version out again.
    """
    name, api = config.name, server.addresses["management"]
    old = running_version(api, name)
    new = choose_version(registered_versions(api, name), wanted)
    archive = build_hidden(config, model_dir, Path(server.store), new)
    try:
        register(api, archive)
    except BaseException:
        archive.unlink(missing_ok=True)
        raise
    try:
        wait_until_loaded(server, run_dir, name, new)
        self_test(server.addresses["inference"], api, name, new)
        set_default(api, name, new)
    except BaseException:
        with suppress(CommandError):  # the first error tells more
            unregister(api, name, new)
        archive.unlink(missing_ok=True)
        raise
    keep(server, run_dir, name, archive)
    drain(api, name, old)
    unregister(api, name, old)
    return old, new


def running_version(api: str, name: str) -> str:
    """Return the version that a name without one stands for. Raises CommandError where the model is not served."""
    served = manage("GET", api, limit="100000")["models"]
    if name not in [model["modelName"] for model in served]:
        raise CommandError(f"The server does not serve {name}: `make archive` builds it, `make stop start` serves it.")
    return str(manage("GET", api, name)[0]["modelVersion"])


def registered_versions(api: str, name: str) -> list[str]:
    """Return all versions of a model that the server has."""
    return [str(one["modelVersion"]) for one in manage("GET", api, name, "all")]


def choose_version(taken: Iterable[str], wanted: str | None = None) -> str:
    """Return the wanted version, or the whole number after all that are taken: 1.0, 2.5 -> 3.0."""
    if wanted is None:
        numbers = [int(found[0]) for version in taken if (found := re.match(r"\d+", version))]
        return f"{max(numbers, default=0) + 1}.0"
    check_version(wanted)
    if wanted in taken:
        raise CommandError(f"Version {wanted} is registered already: give another --version, or none.")
    return wanted


def build_hidden(config: ArchiveConfig, model_dir: Path, store: Path, version: str) -> Path:
    """Build into the store, where alone TorchServe registers from, as a hidden file: a start does not serve it yet."""
    archive = store / f".{config.name}-{version}.mar"
    with (
        console.status(f"Building {config.name} {version}"),
        tempfile.TemporaryDirectory(dir=store, prefix=".swapping-") as scratch,
    ):
        return build(config, model_dir, Path(scratch), version).replace(archive)


def register(api: str, archive: Path) -> None:
    """Have TorchServe unpack an archive of its store and start its workers beside the old ones."""
    with console.status(f"Registering {archive.name}"):
        manage("POST", api, url=archive.name, synchronous="false")


def wait_until_loaded(server: Server, run_dir: Path, name: str, version: str) -> None:
    """Return when all workers of a version are READY. Raises CommandError with the log's reason where one never is."""
    with console.status("") as status:
        for seconds in ticks():
            status.update(f"Loading {name} {version} ({seconds:.0f} s)")
            if not server.lives():
                raise CommandError(f"TorchServe ended: {reason(run_dir)}")
            workers = manage("GET", server.addresses["management"], name, version)[0]["workers"]
            if workers and all(worker["status"] == "READY" for worker in workers):
                return
            for worker in workers:
                if failed := reason(run_dir, only_workers=True, worker=f"W-{worker['id']}-{name}_{version}"):
                    raise CommandError(f"{name} {version} does not load, and the old version stays: {failed}")
    raise CommandError(f"{name} {version} did not load in {PATIENCE} s, and the old version stays: see {run_dir}/logs.")


def self_test(inference: str, api: str, name: str, version: str) -> None:
    """Refuse a version that does not describe itself, or answers none of the samples that its mode has."""
    with console.status(f"Testing {name} {version}"):
        if not answers(api, f"{name}/{version}"):
            raise CommandError(
                f"{name} {version} loads but does not describe itself, and the old version stays: see model_log.log."
            )
        mode = describe(api, f"{name}/{version}", customized=True)["customizedMetadata"]["mode"]
        told = ""
        for sample in sorted((ARTIFACTS / mode / "samples").glob("sample_*")):
            address = f"{inference}/predictions/{name}/{version}"
            headers = {"Content-Type": content_type(sample)}
            reply = local.post(address, data=sample.read_bytes(), headers=headers, timeout=PATIENCE)
            if reply.ok:
                return
            told = f"{sample.name} is answered {reply.status_code} {reply.text.strip()}"
        if told:
            raise CommandError(f"{name} {version} fails its self-test, and the old version stays: {told}")


def content_type(sample: Path) -> str:
    """Return what a sample is sent as: what its suffix means, and for a .txt no type, as `curl -T` sends it."""
    kind = mimetypes.guess_type(sample.name)[0]
    return kind if kind and kind != "text/plain" else "application/octet-stream"


def set_default(api: str, name: str, version: str) -> None:
    """Send requests that name no version to this one, from now on."""
    manage("PUT", api, name, version, "set-default")


def keep(server: Server, run_dir: Path, name: str, archive: Path) -> None:
    """Put the new archive in the old one's place, so that the next start serves it, and note that it runs already."""
    served = archive.replace(archive_files(archive.parent).get(name, archive.with_name(f"{name}.mar")))
    noted = Server.find(run_dir) or server  # another model may have been swapped meanwhile
    replace(noted, archives={**noted.archives, name: fingerprint(served)}).note(run_dir)


def drain(api: str, name: str, version: str) -> None:
    """Return when a version holds no request any more. Raises CommandError where it is asked on and on."""
    with console.status("") as status:
        for seconds in ticks():
            status.update(f"Waiting for {name} {version} to answer what it has ({seconds:.0f} s)")
            # twice, for a request that was on its way into the queue when the default changed
            if holds_nothing(api, name, version) and holds_nothing(api, name, version):
                break
        else:
            raise CommandError(
                f"{name} {version} still has requests after {PATIENCE} s and stays beside the new version: when its "
                f"clients have gone, curl -X DELETE {api}/models/{name}/{version}"
            )
        about = manage("GET", api, name, version)[0]
        if len(about["workers"]) > 1:  # the idle one tells nothing of the others, so they get the time they may take
            status.update(f"Waiting {about['responseTimeout']} s for the workers of {name} {version}")
            time.sleep(about["responseTimeout"])  # TorchServe kills a worker that takes longer for a batch


def holds_nothing(api: str, name: str, version: str) -> bool:
    """Whether no request waits for a version and, where it has one worker, that worker is at none."""
    about = manage("GET", api, name, version)[0]
    if about["jobQueueStatus"]["pendingRequests"]:
        return False
    if any(worker["status"] == "READY" for worker in about["workers"]):
        try:  # a description queues as requests do, so that its answer comes after theirs
            describe(api, f"{name}/{version}", customized=True)
        except requests.RequestException:
            return False
    return True


def unregister(api: str, name: str, version: str) -> None:
    """Stop a version's workers at once; a request that one of them still held would never be answered."""
    with console.status(f"Unregistering {name} {version}"):
        manage("DELETE", api, name, version)


def manage(method: str, api: str, *path: str, **parameters: str) -> Any:  # noqa: ANN401  # each call has its own JSON
    """Call the management API. Raises CommandError with what TorchServe answers."""
    try:
        reply = local.request(method, "/".join([api, "models", *path]), params=parameters, timeout=PATIENCE)
        content = reply.json()
    except requests.RequestException as error:
        raise CommandError(f"{api} does not answer as TorchServe does ({type(error).__name__}).") from error
    if reply.status_code == requests.codes.method_not_allowed:
        raise CommandError("The server takes no models: `make stop start` it with enable_model_api=true in its config.")
    if not reply.ok:
        raise CommandError(f"TorchServe refuses: {content['message']}")
    return content


@app.command()
def main(
    config: Annotated[Path, typer.Option(help="A model-config.yaml; its folder's name is the model's.")] = ARTIFACTS
    / "sequence_classification"
    / "model-config.yaml",
    model: Annotated[
        str | None, typer.Option(help="A Hub id, a folder, or `starter`, in place of handler.model_name.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch, in place of handler.revision.")] = None,
    version: Annotated[
        str | None, typer.Option(help="The new version; the next whole number where none is given.")
    ] = None,
    run_dir: RunOption = RUN_DIR,
) -> None:
    """Replace a running model by a newly built archive: loaded beside the old one, tested, and only then asked.

    Examples:

      python -m scripts.swap

      python -m scripts.swap --config artifacts/reviews/model-config.yaml --model ./my-model
    """
    server = Server.find(run_dir)
    if server is None:
        raise CommandError("The server does not run: `make start` starts it.")
    wanted = archive_config(config, model, revision)
    model_dir = prepare(wanted.name, wanted.content["handler"])
    old, new = swap(server, run_dir, wanted, model_dir, version)
    address = f"{server.addresses['inference']}/predictions/{wanted.name}"
    console.print(f"{wanted.name} {new} answers at {address}; {old} has answered all it had.", soft_wrap=True)


if __name__ == "__main__":
    run(app)
