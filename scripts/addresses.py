"""Where a server listens, as config.properties says, and whether it can."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scripts.console import CommandError


@dataclass(frozen=True)
class Addresses:
    """Where a server listens, as config.properties says."""

    inference: str
    management: str
    metrics: str
    grpc: tuple[str, ...]  # host:port

    @classmethod
    def read(cls, path: Path) -> Addresses:
        """Read the addresses of a config.properties; TorchServe's defaults stand where it has none."""
        if not path.is_file():
            raise CommandError(f"There is no {path}: give --config the path of a config.properties.")
        lines = (line.split("=", 1) for line in path.read_text(encoding="utf-8").splitlines() if "=" in line)
        keys = {key.strip(): value.strip() for key, value in lines if not key.lstrip().startswith("#")}
        return cls(
            inference=keys.get("inference_address", "http://127.0.0.1:8080"),
            management=keys.get("management_address", "http://127.0.0.1:8081"),
            metrics=keys.get("metrics_address", "http://127.0.0.1:8082"),
            grpc=(
                f"{keys.get('grpc_inference_address', '127.0.0.1')}:{keys.get('grpc_inference_port', '7070')}",
                f"{keys.get('grpc_management_address', '127.0.0.1')}:{keys.get('grpc_management_port', '7071')}",
            ),
        )

    def taken(self) -> list[str]:
        """Return those of the addresses that another program listens on."""
        found = []
        for address in (self.inference, self.management, self.metrics, *(f"//{one}" for one in self.grpc)):
            parts = urlsplit(address)
            if parts.hostname is None or parts.port is None:
                raise CommandError(f"{address!r} in config.properties is no address: write http://host:port.")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((parts.hostname, parts.port))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise CommandError(f"Cannot listen on {address}: {error.strerror}.") from error
                    found.append(f"{parts.hostname}:{parts.port}")
        return found
