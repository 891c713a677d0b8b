"""Preparation killed with SIGKILL at its worst moments, and called again."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from data_pipelines.datasets import open_dataset, staging
from data_pipelines.errors import DataError
from tests.data.crops import prepare_crops, truncate

_KILLED = """
import os, signal, sys
from data_pipelines import prepare
from data_pipelines.datasets import assemble, card, workers
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
        ("workers.make = after(workers.make, 2)", 2),
        ("card.Statistics._count = after(card.Statistics._count, 3)", 5),
        ("assemble._write_quarantine = die", 5),
        ("assemble._publish = die", 5),
    ],
    ids=["records", "shards", "metadata", "rename"],
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
    patch = "assemble.shutil.rmtree = die"
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
    _wait(lambda: list(stage.glob("*.npz")))
    process.kill()
    process.wait()
    _wait(lambda: not _group(process.pid))
    done = {path.name.split("-")[0] for path in stage.glob("*.npz")}
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


def test_a_damaged_record_is_made_again(scans: Path, made: list[str]) -> None:
    collection = prepare_crops(scans).collection()
    stage = scans.parent / ".data.partial"
    stage.mkdir()
    for job in staging.plan(collection, stage):
        staging.make(job)
    whole = sorted(stage.glob("*.npz"))
    content = bytearray(whole[1].read_bytes())
    content[len(content) // 2] ^= 1
    whole[1].write_bytes(content)
    truncate(whole[3])
    prepare_crops(scans).prepare()
    assert made == ["s1", "s3"]
    assert [record["study_id"] for record in open_dataset(scans.parent / "data", "train")] == [
        f"s{index}" for index in range(5)
    ]
