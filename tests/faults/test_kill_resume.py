"""Training survives kills, signals and full disks. Longer: python -m tests.faults.kill_resume."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from m3djax.runs import checkpoint
from tests.faults import kill_resume, runs
from tests.faults.runs import Orders


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def test_what_resumes_after_kills_is_what_an_unbroken_run_gives(prepared: str, home: Path) -> None:
    outcomes = kill_resume.series(prepared, home, 3, seed=0)
    assert kill_resume.verdict(outcomes) == []
    assert {outcome.resumed_on for outcome in outcomes} == {1, 2}


def test_a_series_that_hits_no_save_proves_nothing() -> None:
    outcome = kill_resume.Outcome("step", (), 0, 1, 0.0, False)
    assert "no kill fell inside a save" in kill_resume.verdict([outcome])[0]
    wrong = kill_resume.Outcome("save:write", (), 0, 1, 1e-9, False)
    assert "another result" in kill_resume.verdict([wrong])[0]
    assert kill_resume.verdict([kill_resume.Outcome("save:write", (), 0, 2, 1e-9, False)]) == []


def test_sigterm_to_the_whole_group_saves_and_ends(prepared: str, home: Path) -> None:
    """Slurm signals the workers of the input pipeline too. A profile was asked for, and is there.

    A profile needs a process of its own: the profiler asks every accelerator's library that was
    loaded, also the TPU compiler that plans use, which has no TPU to ask.
    """
    orders = Orders(prepared, "stopped", workers=1, steps=5000, profile=(1, 2))
    child = runs.launch(orders, home)
    diary = home / "stopped.diary"
    try:
        end = time.monotonic() + 300
        while sum(phase == "step" for _, phase in runs.read_diary(diary)) < 4:
            assert child.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    said = (home / "stopped.log").read_text()
    saved = re.search(r"SIGTERM came: saved at step (\d+) of 5000", said)
    assert saved, said
    assert checkpoint.newest_readable(home / "runs/stopped") == int(saved[1])
    assert list((home / "runs/stopped").rglob("*.xplane.pb"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = "size=4m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_does_not_cost_the_last_checkpoint(
    prepared: str, small_disk: Path, tmp_path: Path
) -> None:
    """Full behind the first checkpoint; then behind the second, with too little for a third."""
    for times, leave in ((1, 0), (2, 40_000)):
        child = runs.launch(Orders(prepared, "full", leave=leave, notes=str(tmp_path)), small_disk)
        assert child.wait(300) == 1
        said = (tmp_path / "full.log").read_text()
        errors = re.findall(r"run.py train: .*disk or quota is full.*Cure: make room", said)
        assert len(errors) == times, said
        assert checkpoint.newest_readable(small_disk / "runs/full") == times * runs.SAVE_EVERY
        (small_disk / "filler").unlink()
    kill_resume.finish(Orders(prepared, "full"), small_disk)
    assert checkpoint.newest_readable(small_disk / "runs/full") == runs.STEPS
