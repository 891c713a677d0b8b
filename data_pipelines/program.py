"""The command line that starts m3djax."""

import sys
from pathlib import Path

_SCRIPT = Path(__file__).parent.parent / "run.py"


def program() -> str:
    """Returns the program's name in commands for the user: "m3djax" or "python run.py"."""
    called = Path(sys.argv[0]).stem
    return "m3djax" if called == "m3djax" or not _SCRIPT.exists() else "python run.py"
