"""Benchmark of start-up: processor time of verbs' help texts and of `inspect`, by commit.

    python benchmarks/start.py [--json] [--commit 978007b] [--repeats 5]

The two sides are this checkout and a checkout of an earlier commit. They run in turns with the same
Python and packages. The result is the least user and system time of the whole process over all
repeats. Each call runs once before the measurement, so that bytecode and the cached help texts of
configs exist. `train CONFIG, first` is measured without the cached help text. The scan is small (64
x 64 x 64 voxels in a .nii.gz file), so that start-up dominates.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import common

SCAN, PICTURE = "scan.nii.gz", "scan.png"
CONFIG = "configs/quickstart_ask.py"
FIRST = "train CONFIG, first"
CALLS = {
    "quickstart": ("quickstart", "--help"),
    "inspect": ("inspect", "--help"),
    "prepare": ("prepare", "--help"),
    "train CONFIG": ("train", CONFIG, "--help"),
    FIRST: ("train", CONFIG, "--help"),
    "plan CONFIG": ("plan", CONFIG, "--topology", "v5e:4x4", "--help"),
    "evaluate": ("evaluate", "--help"),
    "convert": ("convert", "--help"),
    "chat": ("chat", "--help"),
    "ask": ("ask", "--help"),
    "inspect SCAN": ("inspect", SCAN, "--units", "HU", "--picture", PICTURE),
}


def make_scan(path: Path) -> None:
    """Writes a CT of a cube of water in air."""
    import nibabel as nib
    import numpy as np

    voxels = np.full((64, 64, 64), -1000, np.int16)
    voxels[16:48, 16:48, 16:48] = 0
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), path)


def seconds(root: Path, arguments: tuple[str, ...], folder: Path, side: str) -> float:
    """Returns the processor time in seconds of one call of run.py in a checkout."""
    files = {SCAN, PICTURE}
    given = [str(folder / a) if a in files else a for a in arguments]
    environment = os.environ | {"M3DJAX_CACHE": str(folder / side)}

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    start = used()
    subprocess.run(
        [sys.executable, "run.py", *given], cwd=root, env=environment, capture_output=True
    )
    return used() - start


def measure(before: Path, folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Returns the least time of each call, before and now."""
    make_scan(folder / SCAN)
    found = {}
    for name, arguments in CALLS.items():
        least: dict[str, float] = {}
        for turn in range(repeats + 1):
            for side, root in (("before", before), ("now", common.ROOT)):
                if name == FIRST:
                    shutil.rmtree(folder / side / "help", ignore_errors=True)
                took = seconds(root, arguments, folder, side)
                if turn:
                    least[side] = min(took, least.get(side, took))
        found[name] = least
    return found


def main() -> None:
    """Checks out the earlier commit, measures both sides and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--commit", default="978007b", help="commit to compare with")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    git = ["git", "-C", str(common.ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as temporary:
        before = Path(temporary) / "before"
        add = [*git, "add", "--quiet", "--detach", str(before), options.commit]
        subprocess.run(add, check=True)
        try:
            found = measure(before, Path(temporary), options.repeats)
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    rows = [("processor time, s", "before", "now", "now / before")]
    for name, least in found.items():
        ratio = f"{least['now'] / least['before']:.2f}"
        title = name if name == "inspect SCAN" else f"{name} --help"
        rows.append((title, f"{least['before']:.2f}", f"{least['now']:.2f}", ratio))
    results = {**common.machine("jax", "tyro"), "commit": options.commit, "seconds": found}
    common.show(results, options.json, rows)


if __name__ == "__main__":
    main()
