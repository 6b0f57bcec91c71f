"""The commands, a file each; `python -m scripts.<command> --help` explains one."""

import sys
from pathlib import Path

# hfserve is imported from where an archive takes it; it is not installed, so that there is one copy of it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "handlers"))
