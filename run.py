"""The one entry: python run.py VERB ... (--help on each verb tells the rest)."""

from __future__ import annotations

import sys

from m3djax.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
