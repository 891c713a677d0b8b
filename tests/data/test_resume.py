"""Preparation killed with SIGKILL at its worst moments, and called again."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from data_pipelines.datasets import job, open_dataset, shards
from data_pipelines.errors import DataError
from tests.data.crops import prepare_crops, truncate

_KILLED = """
import os, signal, sys
from data_pipelines import prepare
from data_pipelines.datasets import assemble, card, job, shards, storage
def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
def after(function, calls):
    def call(*args, **kwargs):
        nonlocal calls
        calls -= 1
        return function(*args, **kwargs) if calls >= 0 else die()
    return call
{patch}
prepare.Prepare("folder", {scans!r}, out={out!r}, units="HU", test_fraction=0.0, workers=0).run()
"""


@pytest.mark.parametrize(
    ("patch", "finished"),
    [
        ("job.make = after(job.make, 2)", 2),
        ("shards.files.move_folder = after(shards.files.move_folder, 2)", 2),
        ("card.Statistics.add = after(card.Statistics.add, 3)", 5),
        ("storage.publish = die", 5),
        ("assemble._table = die", 5),
    ],
    ids=["records", "shard", "index", "publish", "metadata"],
)
def test_kill_9_and_resume(scans: Path, made: list[str], patch: str, finished: int) -> None:
    out = scans.parent / "data"
    code = _KILLED.format(patch=patch, scans=str(scans), out=str(out))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert not out.exists()
    with pytest.raises(DataError, match=r"there is no such dataset. Cure: prepare it"):
        open_dataset(out, "train")

    prepare_crops(scans).prepare()
    assert made == [f"s{index}" for index in range(finished, 5)]
    records = list(open_dataset(out, "train"))
    assert [record["study_id"] for record in records] == [f"s{index}" for index in range(5)]
    prepare_crops(scans, overwrite=True).prepare()
    for record, undisturbed in zip(records, open_dataset(out, "train"), strict=True):
        np.testing.assert_array_equal(record["image"], undisturbed["image"])
    assert [path.name for path in scans.parent.glob(".*")] == []


def test_kill_9_after_the_rename(scans: Path, made: list[str]) -> None:
    out = scans.parent / "data"
    patch = "assemble._remove = die"
    code = _KILLED.format(patch=patch, scans=str(scans), out=str(out))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert len(open_dataset(out, "train")) == 5
    assert (scans.parent / ".data.partial").exists()
    assert not prepare_crops(scans).prepare().fresh and made == []
    assert not (scans.parent / ".data.partial").exists()


def test_kill_9_with_workers_leaves_no_process(scans: Path, made: list[str]) -> None:
    script = scans.parent / "script.py"
    script.write_text(
        "from data_pipelines.prepare import Prepare\n"
        "if __name__ == '__main__':\n"
        f"    Prepare('folder', {str(scans)!r}, out={str(scans.parent / 'data')!r}, units='HU',"
        " test_fraction=0.0, workers=2, spacing=(0.3, 0.6, 0.6)).run()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, str(script)], start_new_session=True, env=environment
    )
    stage = scans.parent / ".data.partial"
    _wait(lambda: list(stage.glob("train-*/studies.jsonl")))
    process.kill()
    process.wait()
    _wait(lambda: not _group(process.pid))
    finished = [path for path in stage.glob("train-*/studies.jsonl")]
    done = {f"s{int(path.parent.name.split('-')[1])}" for path in finished}
    assert 0 < len(done) < 5
    prepare_crops(scans, spacing=(0.3, 0.6, 0.6)).prepare()
    assert set(made) == {f"s{index}" for index in range(5)} - done


def _wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _group(leader: int) -> list[str]:
    """Processes of this process group that still live."""
    living = []
    for path in epath.Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = (path / "stat").read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            living.append(path.name)
    return living


@pytest.mark.parametrize("damage", ["cut records", "cut index", "cut end", "no records"])
def test_a_damaged_shard_is_made_again(scans: Path, made: list[str], damage: str) -> None:
    stage = scans.parent / ".data.partial"
    stage.mkdir()
    planned = shards.plan(prepare_crops(scans).collection(), epath.Path(stage))
    for shard in planned:
        shards.make(shard)
    made.clear()
    folder = Path(planned[1].folder)
    records = next(folder.glob("*array_record"))
    if damage == "no records":
        records.unlink()
    else:
        index = folder / ("studies.jsonl" if damage == "cut index" else "shard.json")
        truncate(records if damage == "cut records" else index)
    prepare_crops(scans).prepare()
    assert made == ["s1"]
    ids = [record["study_id"] for record in open_dataset(scans.parent / "data", "train")]
    assert ids == [f"s{index}" for index in range(5)]


def test_a_study_that_was_killed_three_times_is_put_aside(scans: Path, made: list[str]) -> None:
    """As on a cluster, where the scan that kills the worker is unknown at first."""
    stage = epath.Path(scans.parent / ".data.partial")
    stage.mkdir()
    planned = shards.plan(prepare_crops(scans).collection(), stage)
    for deaths in (2, 3):
        planned[1].attempts.write_text(f"[[0, {deaths}]]")
        assert planned[1].attempts.exists()
        shards.make(planned[1])
        (row,) = planned[1].rows()
        assert ("broken" in row) == (deaths == 3)
        assert not planned[1].attempts.exists()
        planned[1].folder.rmtree()


def test_a_full_disk_is_not_the_fault_of_the_scan(
    scans: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = job.encode

    def no_room(*args: object, **options: object) -> object:
        if made[-1] == "s3":
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(*args, **options)

    monkeypatch.setattr(job, "encode", no_room)
    with pytest.raises(DataError, match="the disk is full.* Cure: make room and call it again"):
        prepare_crops(scans).prepare()
    assert not (scans.parent / "data").exists()
    monkeypatch.undo()
    result = prepare_crops(scans).prepare()
    assert (dict(result.splits), result.quarantined) == ({"train": 5}, 0)


def test_a_file_size_limit_in_the_middle_of_a_shard(scans: Path) -> None:
    """A real refusal to write, by the system itself."""
    code = f"""
import resource, signal
from data_pipelines.prepare import Prepare
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from m3djax.cli import main
raise SystemExit(main(["prepare", "folder", "--source", {str(scans)!r}, "--units", "HU",
                       "--out", {str(scans.parent / "data")!r}, "--workers", "0"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "the disk is full" in done.stderr, done.stderr
    assert not (scans.parent / "data").exists()
    assert prepare_crops(scans).prepare().quarantined == 0


def test_interruptions_are_not_held_against_a_scan(
    scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(4):
        with monkeypatch.context() as patch:
            patch.setattr(job, "make", interrupted)
            with pytest.raises(KeyboardInterrupt):
                prepare_crops(scans).prepare()
    assert prepare_crops(scans).prepare().quarantined == 0
