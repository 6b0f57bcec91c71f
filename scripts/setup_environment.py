"""Make `.venv` with exactly the versions of requirements.lock, and see that there is a Java. Plain Python, no packages.

Usage: python3 scripts/setup_environment.py [folder]
Set TORCH_INDEX_URL to the address of PyTorch's CPU wheels to get no CUDA packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
SUPPORTED = ((3, 10), (3, 12))


def main(folder: Path) -> int:
    """Set the environment up and return the exit status."""
    if not SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        version = ".".join(map(str, sys.version_info[:3]))
        sys.stderr.write(
            f"Error: Python {version} is not supported, 3.10 to 3.12 are: run `make setup PYTHON=python3.12`, say.\n"
        )
        return 1
    python = folder / "bin" / "python"
    done = folder / "requirements.lock"  # a copy of the lock that was installed
    if done.exists() and done.read_bytes() == LOCK.read_bytes():
        return 0
    if not python.exists():
        sys.stdout.write(f"Making {folder}\n")
        try:
            venv.create(folder, with_pip=True)
        except subprocess.CalledProcessError:  # Debian ships venv without pip's wheel, in a package of its own
            python.unlink(missing_ok=True)  # so that the next run begins anew
            sys.stderr.write("Error: Python cannot make an environment: install its venv package (python3-venv).\n")
            return 1
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r", str(LOCK)]
    if index := os.environ.get("TORCH_INDEX_URL"):
        command += ["--extra-index-url", index]
    if subprocess.run(command, check=False).returncode:
        sys.stderr.write("Error: pip could not install requirements.lock; its last lines above say why.\n")
        return 1
    if subprocess.run([str(python), "-m", "scripts.java"], cwd=ROOT, check=False).returncode:
        return 1
    done.write_bytes(LOCK.read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".venv").absolute()))
