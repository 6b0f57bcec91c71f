"""What asking a running server takes, for whatever is asked: a body for each mode, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import requests
import typer

from scripts.addresses import Addresses
from scripts.console import CommandError
from scripts.torchserve import describe, local

TextArgument = Annotated[str, typer.Argument(help="The text, the context of a question, or a prompt.")]
ModelOption = Annotated[str, typer.Option(help="The archive's name.")]
QuestionOption = Annotated[str, typer.Option(help="What to ask of the text, where the model answers questions.")]
ConfigOption = Annotated[Path, typer.Option(help="The server's config.properties.")]

Body = dict[str, Any]

BODIES: dict[str, Callable[[str, str], Body]] = {
    "sequence_classification": lambda text, _: {"inputs": text},
    "token_classification": lambda text, _: {"inputs": text},
    "question_answering": lambda text, question: {"question": question, "context": text},
    "text_generation": lambda text, _: {"inputs": text},
}


def mode_of(addresses: Addresses, model: str, question: str) -> str:
    """Return what a served model does, if it can be asked so. Raises CommandError."""
    try:
        mode = str(describe(addresses.management, model, customized=True)["customizedMetadata"]["mode"])
    except requests.ConnectionError:
        raise _nobody(addresses.management) from None
    except (requests.RequestException, KeyError) as error:
        raise CommandError(f"The server does not serve {model}: `make status` shows what it serves.") from error
    if mode == "question_answering" and not question.strip():
        raise CommandError('What shall it answer? Give a question: --question "...", or QUESTION="..." to make.')
    return mode


def ask(address: str, path: str, body: Body) -> Any:  # noqa: ANN401  # each mode has its own JSON
    """Return what the server answers to `path`. Raises CommandError."""
    try:
        reply = local.post(f"{address}/{path}", json=body, timeout=120)
        content = reply.json()
    except requests.ConnectionError:
        raise _nobody(address) from None
    except requests.RequestException as error:  # too slow, or no JSON: not TorchServe
        raise CommandError(f"{address} does not answer as TorchServe does ({type(error).__name__}).") from error
    if reply.status_code != requests.codes.ok:
        told = content.get("error", content)
        raise CommandError(f"The server answered {reply.status_code}: {told['message']}")
    return content


def _nobody(address: str) -> CommandError:
    return CommandError(f"No server listens at {address}: start one with `make start`.")
