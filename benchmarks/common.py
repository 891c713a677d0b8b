"""What every benchmark shares: where it ran, how it measures, how it prints."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("ours", "torch float32", "torch bfloat16")
"""Contestants, as they take turns."""
sys.path.insert(0, str(ROOT))  # benchmarks run as scripts, beside the packages that they measure


def machine(*packages: str) -> dict[str, Any]:
    """Date, processor, cores and versions."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def in_process(script: str, *arguments: str, limit: float | None = None) -> dict[str, Any]:
    """Runs `python SCRIPT ARGUMENTS` in a process of its own; returns the JSON of its last line.

    Peak memory and imports of one contestant then never touch the other.

    Raises:
      subprocess.TimeoutExpired: it took longer than `limit` seconds, and was stopped.
    """
    command = [sys.executable, script, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(
    script: str, arguments: Callable[[str], Sequence[str]], rounds: int, patience: float
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Runs every side once a round, each in a process of its own.

    Args:
      script: what is run, with `arguments` of the side.
      arguments: of a side.
      rounds: turns of every side.
      patience: torch's bfloat16 is stopped, and not tried again, after so many times what its
        float32 took: without AVX512 or AMX it multiplies so slowly that it would not end.

    Returns:
      What every side said, and why a side is missing.
    """
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    without: dict[str, str] = {}
    for _ in range(rounds):
        took = float("inf")
        for side in (side for side in SIDES if side not in without):
            limit = patience * took if side == "torch bfloat16" else None
            begin = time.perf_counter()
            try:
                runs[side].append(in_process(script, *arguments(side), limit=limit))
            except subprocess.TimeoutExpired:
                without[side] = f"stopped after {limit:.0f} s"
            except RuntimeError as error:
                if side != "torch bfloat16":
                    raise
                without[side] = str(error).strip().splitlines()[-1]  # not every peer can
            took = time.perf_counter() - begin
    return {side: done for side, done in runs.items() if side not in without}, without


def middle(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def forget(paths: Sequence[Path]) -> None:
    """Drops files from the page cache, so that they are read from the disk again."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def show(results: dict[str, Any], as_json: bool, rows: Sequence[Sequence[str]]) -> None:
    """Prints the results as JSON, or their rows as a Markdown table."""
    if as_json:
        print(json.dumps(results, indent=1))
        return
    head, *body = rows
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in body:
        print(f"| {' | '.join(row)} |")
