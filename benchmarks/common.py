"""Shared code of all benchmarks: description of the machine, measurement and output."""

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
"""The sides of a benchmark, in the order of their turns."""
sys.path.insert(0, str(ROOT))  # for scripts that import the packages of this repository


def machine(*packages: str) -> dict[str, Any]:
    """Returns date, processor, cores and versions."""
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
    """Runs `python SCRIPT ARGUMENTS` in a new process; returns the JSON of its last line.

    So the memory and the imports of one side do not affect the other.

    Raises:
      subprocess.TimeoutExpired: the process took longer than `limit` seconds and was stopped.
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
    """Runs each side once per round, each time in a new process.

    Args:
      script: the script to run.
      arguments: function that returns the arguments of a side.
      rounds: number of rounds.
      patience: limit of torch's bfloat16, as a multiple of the time of torch's float32. After this
        time it is stopped and not run again: without AVX512 or AMX it is so slow that it would not
        end.

    Returns:
      The results of each side, and the reasons for missing sides.
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
                without[side] = str(error).strip().splitlines()[-1]  # no bfloat16 there
            took = time.perf_counter() - begin
    return {side: done for side, done in runs.items() if side not in without}, without


def middle(values: Sequence[float]) -> dict[str, float]:
    """Returns median, minimum and maximum of repeated measurements."""
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
