"""The command m3djax without an installation: python run.py VERB ...; --help says more."""

from __future__ import annotations

import sys

from m3djax.cli import main

if __name__ == "__main__":
    sys.exit(main())
