"""Renew requirements.lock from the ranges in pyproject.toml, one file for every supported Python."""

from __future__ import annotations

import subprocess
import sys

from scripts.console import ROOT, CommandError, console

HEADER = """\
# Exact versions of everything, for Python 3.10 to 3.12; `make lock` renews this file from pyproject.toml.
# torch's own CUDA packages are left out: torch's wheel names them itself, and its CPU wheels need none.
"""
CUDA = ("nvidia-", "cuda-", "triton")


def main() -> None:
    """Resolve and write the lock. Raises CommandError."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--universal", "--python-version", "3.10"]
    command += ["--extra", "dev", "--no-header", "--no-annotate", "--upgrade", "pyproject.toml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"The ranges in pyproject.toml cannot be met together: {done.stderr.strip()}")
    lines = [line for line in done.stdout.splitlines() if not line.startswith(CUDA)]
    (ROOT / "requirements.lock").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    console.print(f"requirements.lock names {len(lines)} packages.")


if __name__ == "__main__":
    main()
