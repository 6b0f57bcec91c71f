"""Start, stop and look at TorchServe with the archives of a model store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import requests
import typer
from rich.table import Column, Table

from scripts.console import MODEL_STORE, ROOT, CommandError, command, console, run
from scripts.torchserve import Server, archives_in, describe, launch, wait_until_ready

app = command()

RUN_DIR = ROOT / ".run"  # the server's notes and logs
CONFIG = ROOT / "config.properties"

ConfigOption = Annotated[Path, typer.Option("--config", help="TorchServe's config.properties.")]
StoreOption = Annotated[Path, typer.Option("--model-store", help="The folder of archives.")]
RunOption = Annotated[Path, typer.Option("--run-dir", help="Where notes and logs of the server go.")]


@app.command()
def start(
    config: ConfigOption = CONFIG,
    store: StoreOption = MODEL_STORE,
    run_dir: RunOption = RUN_DIR,
    replace: Annotated[
        bool, typer.Option("--replace", help="Restart a server whose archives have changed since.")
    ] = False,
) -> None:
    """Serve every archive of the model store, and return when they answer.

    Examples:

      python -m scripts.server start

      python -m scripts.server start --config my.properties --model-store archives
    """
    running = Server.find(run_dir)
    if running and running.archives == archives_in(store):
        wait_until_ready(running, run_dir)  # it may still be loading
        console.print(
            f"The server runs already at {running.addresses['inference']} (pid {running.pid}).", soft_wrap=True
        )
        return
    if running and not replace:
        raise CommandError(
            f"The server runs (pid {running.pid}) with older archives: `make stop start` serves the new ones."
        )
    if running:
        running.end(run_dir)
    server = launch(config, store, run_dir)
    try:
        wait_until_ready(server, run_dir)
    except BaseException:
        server.end(run_dir)
        raise
    for name in server.archives:
        console.print(f"{name} answers at {server.addresses['inference']}/predictions/{name}", soft_wrap=True)


@app.command()
def stop(run_dir: RunOption = RUN_DIR) -> None:
    """Stop the server.

    Example: python -m scripts.server stop
    """
    server = Server.find(run_dir)
    if server is None:
        console.print("The server does not run.")
        return
    with console.status("Stopping"):
        server.end(run_dir)
    console.print("The server has stopped.")


@app.command()
def status(run_dir: RunOption = RUN_DIR) -> None:
    """Show where the server listens and how its models are.

    Example: python -m scripts.server status
    """
    server = Server.find(run_dir)
    if server is None:
        console.print("The server does not run: `make start` starts it.")
        raise typer.Exit(1)
    for name in ("inference", "management", "metrics"):
        console.print(f"{name:<11} {server.addresses[name]}")
    table = Table(Column("model", overflow="fold"), "version", "workers ready", "batch size", "waiting", "engine")
    for model in server.archives:
        table.add_row(*_row(server.addresses["management"], model))
    console.print(table)


def _row(management: str, model: str) -> list[str]:
    """One model as a line of the table; one that does not answer is shown, not hidden."""
    try:
        about = describe(management, model, customized=True)
    except requests.RequestException as error:
        return [model, "", f"no answer ({type(error).__name__})", "", "", ""]
    ready = sum(worker["status"] == "READY" for worker in about["workers"])
    own: Mapping[str, Any] = about.get("customizedMetadata") or {}
    waiting = about.get("jobQueueStatus", {}).get("pendingRequests", "")
    cells = [model, about["modelVersion"], f"{ready} of {about['minWorkers']}", about["batchSize"], waiting]
    return [str(cell) for cell in [*cells, own.get("engine", "")]]


if __name__ == "__main__":
    run(app)
