"""Kills training at random moments and compares the resumed run with an uninterrupted one.

    python -m tests.faults.kill_resume --runs 20 [--seed 0]

Half of the kills (SIGKILL to the whole process group) fall anywhere between start and end; the
other half wait for a random save to begin and fall at a random moment of the time it takes.
Resumed on the same mesh, a run must end bit for bit as the unbroken one: every loss, parameter and
moment. On another mesh everything must be within 1e-6. The set fails if no kill hit a save.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from etils import epath

from m3djax.mesh import sharding
from m3djax.runs import checkpoint, run_folder
from m3djax.runs.metrics import read_metrics
from m3djax.runs.state import abstract_state
from tests.faults import runs
from tests.faults.runs import Orders

LIMIT = 1e-6
SECONDS = 300  # for a child; it needs a few


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One kill and its result.

    Attributes:
      phase: where the kill fell, such as "step" or "save:write".
      left: unfinished folders that it left behind.
      resumed: step that training went on from.
      resumed_on: devices.
      difference: largest one to the unbroken run, over losses, parameters and moments.
      frozen: whether parameters were frozen.
    """

    phase: str
    left: tuple[str, ...]
    resumed: int
    resumed_on: int
    difference: float
    frozen: bool

    @property
    def good(self) -> bool:
        return self.difference <= (0.0 if self.resumed_on == 1 else LIMIT)

    def __str__(self) -> str:
        how = "bit-equal" if self.difference == 0 else f"off by {self.difference:.1e}"
        kind = ", encoder frozen" if self.frozen else ""
        return (
            f"killed in {self.phase:13} left {', '.join(self.left) or 'nothing':38} "
            f"resumed at {self.resumed:2} on {self.resumed_on} device(s){kind}: {how}"
        )


@dataclasses.dataclass(frozen=True)
class Unbroken:
    """A run without a break, and how long its parts took, in seconds."""

    curve: list[float]
    state: dict[str, np.ndarray]
    whole: float
    save: float


def series(dataset: str, home: Path, count: int, seed: int) -> list[Outcome]:
    """Kills and resumes `count` times; see the module."""
    rng = random.Random(seed)
    whole = {False: unbroken(Orders(dataset, "unbroken"), home)}
    outcomes = []
    for number in range(count):
        frozen = number % 4 == 3
        if frozen not in whole:
            whole[frozen] = unbroken(Orders(dataset, "unbroken-frozen", frozen), home)
        orders = Orders(dataset, f"run-{number}", frozen)
        devices = 2 if number % 4 == 2 else 1
        outcomes.append(once(orders, devices, home, whole[frozen], rng, aimed=number % 2 == 0))
        print(f"{number + 1:3}/{count} {outcomes[-1]}", flush=True)
    return outcomes


def verdict(outcomes: list[Outcome]) -> list[str]:
    """Why a series fails; empty if it does not."""
    reasons = [f"another result: {outcome}" for outcome in outcomes if not outcome.good]
    if not any(outcome.phase.startswith("save:") for outcome in outcomes):
        reasons.append("no kill fell inside a save: nothing is proven; use more --runs")
    return reasons


def unbroken(orders: Orders, home: Path) -> Unbroken:
    """Trains twice, the second time for the clock: the first one compiles."""
    for attempt in (orders, dataclasses.replace(orders, name=f"{orders.name}-again")):
        finish(attempt, home)
    diary = runs.read_diary(home / f"{attempt.name}.diary")
    begun, lengths = None, []
    for when, phase in diary:
        if phase == "copy":
            begun = when
        if phase == "saved" and begun is not None:
            lengths.append(when - begun)
    curve, state = result(attempt, home)
    again = result(orders, home)
    assert curve == again[0] and largest_difference(state, again[1]) == 0, "training is not exact"
    return Unbroken(curve, state, diary[-1][0] - diary[0][0], statistics.median(lengths))


def once(
    orders: Orders, devices: int, home: Path, whole: Unbroken, rng: random.Random, aimed: bool
) -> Outcome:
    """One kill, and one run to the end after it."""
    diary = home / f"{orders.name}.diary"
    child = runs.launch(orders, home)
    if aimed:
        wanted = rng.randint(1, runs.STEPS // runs.SAVE_EVERY)
        wait_for_save(child, diary, wanted)
        time.sleep(rng.uniform(0, whole.save))
    else:
        with contextlib.suppress(Exception):
            child.wait(rng.uniform(0, whole.whole))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    phase = runs.phase_at_the_end(runs.read_diary(diary))
    run = home / "runs" / orders.name
    left = unfinished(run)
    resumed = checkpoint.newest_readable(run) if any(readable(run)) else 0
    finish(dataclasses.replace(orders, devices=devices), home)
    curve, state = result(orders, home)
    assert len(curve) == len(whole.curve), f"{run}: steps are missing or double"
    difference = max(
        largest_difference(dict(enumerate(curve)), dict(enumerate(whole.curve))),
        largest_difference(state, whole.state),
    )
    return Outcome(phase, left, resumed, devices, difference, orders.frozen)


def wait_for_save(child, diary: Path, number: int) -> None:
    end = time.monotonic() + SECONDS
    while sum(phase == "copy" for _, phase in runs.read_diary(diary)) < number:
        assert child.poll() is None and time.monotonic() < end, f"no save number {number}"
        time.sleep(0.002)


def finish(orders: Orders, home: Path) -> None:
    """Trains to the end."""
    child = runs.launch(orders, home)
    try:
        status = child.wait(SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    assert status == 0, orders.note(home, "log").read_text()


def readable(run: Path) -> list[bool]:
    """For each step that lies there whether it is whole."""
    steps = (epath.Path(run) / "checkpoints" / str(step) for step in run_folder.steps_in(run))
    return [not checkpoint.manifest.damage(step) for step in steps]


def unfinished(run: Path) -> tuple[str, ...]:
    """What a kill left in the middle of being written: the proof that it hit a save."""
    folders = [*run.glob("checkpoints/*"), *run.glob("frozen*")]
    found = (path for path in folders if not (path / checkpoint.manifest.NAME).exists())
    return tuple(sorted(path.name[:24] for path in found))


def result(orders: Orders, home: Path) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses, and the whole state of the last checkpoint as Orbax gives it back."""
    run = epath.Path(home) / "runs" / orders.name
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    checkpointer = checkpoint.Checkpointer(run)
    try:
        state = checkpointer.restore(abstract_state(runs.experiment(orders), mesh))
    finally:
        checkpointer.close()
    assert state is not None and int(state.step) == runs.STEPS
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return [row["loss"] for row in read_metrics(run)], arrays


def largest_difference(one: dict, two: dict) -> float:
    """Largest absolute difference; infinity unless the same things are there."""
    if one.keys() != two.keys():
        return float("inf")
    pairs = ((np.asarray(one[k], np.float64), np.asarray(two[k], np.float64)) for k in one)
    return max(float(np.max(np.abs(a - b), initial=0.0)) for a, b in pairs)


def main() -> int:
    from data_pipelines import fetch
    from data_pipelines.prepare import Prepare

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    home = Path(tempfile.mkdtemp(prefix="kill_resume-"))
    dataset = str(home / "sample_ct")
    Prepare("sample_ct", source=str(fetch.sample_scans()), out=dataset, workers=0).prepare()
    outcomes = series(dataset, home, options.runs, options.seed)
    for phase, count in sorted(Counter(outcome.phase for outcome in outcomes).items()):
        print(f"{count:4} in {phase}")
    reasons = verdict(outcomes)
    for reason in reasons:
        print(f"FAILED: {reason}")
    if not reasons:
        shutil.rmtree(home)
        print(f"all {len(outcomes)} resumed as if nothing had happened")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
