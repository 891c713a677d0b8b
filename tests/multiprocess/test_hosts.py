"""Several processes train like one process, and end together."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from m3djax.config import registry
from m3djax.contracts.scores import Scores
from m3djax.mesh import sharding
from m3djax.runs import checkpoint, run_folder
from m3djax.runs.metrics import read_metrics
from m3djax.training.train import train
from tests import tiny
from tests.multiprocess.launch import slurm, together
from tests.multiprocess.measured import Brightness

MEASURED = 11  # crops, a number that processes cannot share alike
LONG = {"name": "long", "steps": 3000, "save_every": 20, "devices": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_allowed", {"tests"})  # the package of the evaluator
        yield tmp_path_factory.mktemp("hosts")


@pytest.fixture(autouse=True)
def in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


@pytest.fixture(scope="module")
def alone(prepared: str, home: Path) -> list[float]:
    """Losses of a run of six steps in one process on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        make = sharding.make_mesh
        patch.setattr(sharding, "make_mesh", lambda _: make((1, 1, 1), jax.devices()[:1]))
        measured = {"brightness": Brightness(crops=MEASURED, every=3)}
        train(tiny.experiment(prepared, name="alone", evaluators=measured))
    return losses(home / "runs/alone")


@pytest.fixture(scope="module")
def two(prepared: str, home: Path) -> list[dict]:
    """Two processes with two devices each, in a mesh that goes round; three steps of six."""
    orders = {"dataset": prepared, "name": "shared", "torus": True, "measured": MEASURED}
    with together(home, 2, orders) as group:
        told = group.finish()
        assert group.said() == ["", ""]
        # The network prints here as well, in pieces: only what is ours counts.
        shown = ["loss" in output.read_text() for output in group.outputs]
        assert shown == [True, False], "only process 0 shows its progress"
    return told


def same_scores(home: Path, processes: int) -> None:
    """Every process has measured its crops of the shared run, and all scores are as of one."""
    found, expected = (
        Scores.read(epath.Path(home) / "runs" / run / "evaluation/brightness")
        for run in ("shared", "alone")
    )
    ours, theirs = (scores.column("", "brightness") for scores in (found, expected))
    assert ours.sample.tolist() == theirs.sample.tolist() and len(ours.sample) >= MEASURED
    assert [ours.units.names[n] for n in ours.units.number] == [
        theirs.units.names[n] for n in theirs.units.number
    ]
    np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-4)
    assert set(expected.column("", "process").value) == {0}
    # Batches of 8 crops of each process: with four, 11 crops leave nothing for the last two.
    rows = [number // 8 % processes for number in range(len(ours.sample))]
    assert found.column("", "process").value.tolist() == rows


def losses(run: Path) -> list[float]:
    rows = [row for row in read_metrics(run) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


def row_sums(prepared: str) -> list[int]:
    batch = next(tiny.experiment(prepared).data.batches(0))
    return [int(image.sum(dtype=np.int64)) for image in batch["image"]]


def test_two_processes_share_the_rows_and_learn_the_same(
    two: list[dict], alone: list[float], prepared: str, home: Path
) -> None:
    assert [(child["process"], child["processes"]) for child in two] == [(0, 2), (1, 2)]
    assert [child["rows"] for child in two] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    sums = {row: s for child in two for row, s in zip(child["rows"], child["sums"], strict=True)}
    assert [sums[row] for row in range(8)] == row_sums(prepared)
    np.testing.assert_allclose(losses(home / "runs/shared"), alone, rtol=5e-6)
    assert len(list((home / "runs/shared/tensorboard").iterdir())) == 1
    same_scores(home, processes=2)
    results = json.loads((home / "runs/shared/evaluation/results.json").read_text())
    value = results["found"]["brightness"]["brightness"]
    measured = [row for row in read_metrics(home / "runs/alone") if "brightness/brightness" in row]
    assert [row["step"] for row in measured] == [2, 5]
    assert value == pytest.approx(measured[-1]["brightness/brightness"], rel=1e-4)
    assert value != pytest.approx(measured[0]["brightness/brightness"], rel=1e-4), "it depends"


def test_four_processes_go_on_where_two_were_and_one_where_four_were(
    two: list[dict], alone: list[float], prepared: str, home: Path
) -> None:
    """Also tensor parallelism across processes: those that hold the same rows make the same."""
    drop_step(home / "runs/shared", 6)
    orders = {"dataset": prepared, "name": "shared", "mesh": (1, 2, 2), "devices": 1}
    with together(home, 4, orders | {"measured": MEASURED}, slurm) as group:
        told = group.finish()
    same_scores(home, processes=4)
    assert [child["rows"] for child in told] == [[*range(4)]] * 2 + [[*range(4, 8)]] * 2
    assert told[0]["sums"] == told[1]["sums"] and told[2]["sums"] == told[3]["sums"]
    assert told[0]["sums"] + told[2]["sums"] == row_sums(prepared)
    np.testing.assert_allclose(losses(home / "runs/shared"), alone, rtol=5e-6)
    drop_step(home / "runs/shared", 6)
    train(tiny.experiment(prepared, name="shared", mesh=(-1, 1, 2)))  # 8 devices, 1 process
    np.testing.assert_allclose(losses(home / "runs/shared"), alone, rtol=5e-6)


def trains(run: Path, step: int, since: float) -> bool:
    """Whether a run got to a step; the file may still be that of the run before."""
    rows = read_metrics(run)
    new = (run / "metrics.jsonl").stat().st_mtime > since
    return new and bool(rows) and rows[-1]["step"] >= step


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)


def drop_step(run: Path, step: int) -> None:
    (run / "checkpoints" / str(step)).rename(run / f"dropped-{os.urandom(4).hex()}")


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_ends_the_others_with_a_reason(
    victim: int, prepared: str, home: Path
) -> None:
    done = lambda: run_folder.steps_in("runs/long")  # noqa: E731
    before = (done() or [0])[0]
    with together(home, 2, LONG | {"dataset": prepared}) as group:
        group.until(lambda: done() and done()[0] > before)
        os.killpg(group.processes[victim].pid, signal.SIGKILL)
        assert group.wait(60)[1 - victim] != 0
        cure = "Cure: remove the cause, then start all processes again"
        until(lambda: cure in group.said()[1 - victim])  # the last words come a moment later
        said = group.said()[1 - victim]
    assert re.search(r"process \d of 2 .*another process|process \d of 2.*failed", said), said


def test_a_restart_goes_on_and_a_signal_to_one_stops_all_at_the_same_step(
    prepared: str, home: Path
) -> None:
    """Follows the test above: it finds the run that the kills left."""
    before = checkpoint.newest_readable("runs/long")
    assert before > 0
    launched = time.time()
    with together(home, 2, LONG | {"dataset": prepared}) as group:
        group.until(lambda: trains(home / "runs/long", before + 2, launched))
        group.processes[1].send_signal(signal.SIGTERM)
        assert group.wait(120) == [1, 1]
    steps = [re.search(r"SIGTERM came: saved at step (\d+) of 3000", said) for said in group.said()]
    assert steps[0] and steps[1] and steps[0][1] == steps[1][1]
    assert checkpoint.newest_readable("runs/long") == int(steps[0][1])
    curve = losses(home / "runs/long")  # every step once: no restart from zero, no gap
    assert len(curve) == int(steps[0][1])


def test_what_fails_in_one_process_is_said_in_all(prepared: str, home: Path) -> None:
    orders = {"dataset": prepared, "name": "broken", "broken_from": 4, "devices": 1}
    with together(home, 2, orders) as group:
        assert group.wait(120) == [1, 1]
    first, second = group.said()
    assert "shard-7: cannot be read any more. Cure: mend the disk" in second
    assert re.search(r"process 0 of 2 .*ends, because process 1 of 2 .*shard-7: cannot", first)


def test_a_process_that_finds_nobody_says_so(prepared: str, home: Path) -> None:
    environment = {"M3DJAX_START_SECONDS": "3"}
    with together(home, 2, {"dataset": prepared, "name": "lonely"}, **environment) as group:
        os.killpg(group.processes[0].pid, signal.SIGKILL)
        assert group.wait(120)[1] != 0
        until(lambda: "Cure: start all of them" in group.said()[1])
        assert "did not connect within 3 seconds. Cure: start all of them" in group.said()[1]
