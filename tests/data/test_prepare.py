"""Preparation under kills, broken scans and changed recipes."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest
from etils import epath

from data_pipelines import preprocess
from data_pipelines.datasets import assemble, open_dataset, staging, workers
from data_pipelines.datasets.records import quantize
from data_pipelines.datasets.study import Collection, Study
from data_pipelines.errors import DataError
from data_pipelines.prepare import QUARANTINED, Prepare


@pytest.fixture
def scans(sample_scans, tmp_path):
    """Five crops of a real CT."""
    image = nib.load(sample_scans / "example_ct_sm.nii.gz")
    root = tmp_path / "scans"
    root.mkdir()
    for index in range(5):
        nib.save(image.slicer[20 + index : 60, 30:70, 5:25], root / f"s{index}.nii.gz")
    return root


@pytest.fixture
def made(monkeypatch):
    """The ids of the studies whose records are made in this process."""
    ids = []
    make = staging.make

    def count(job):
        ids.append(job.study.study_id)
        return make(job)

    monkeypatch.setattr(workers, "make", count)
    return ids


def _prepare(scans, **options):
    out = str(scans.parent / "data")
    fixed = {"units": "HU", "test_fraction": 0.0, "workers": 0}
    return Prepare("folder", str(scans), out=out, **(fixed | options))


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_broken_scan_is_put_aside(scans, capsys):
    _truncate(scans / "s2.nii.gz")
    assert _prepare(scans, workers=2).run() == QUARANTINED == 3
    out = scans.parent / "data"
    ids = [record["study_id"] for record in open_dataset(out, "train")]
    assert ids == ["s0", "s1", "s3", "s4"]
    (row,) = csv.DictReader((out / "quarantine.csv").open())
    assert (row["file"], row["study_id"]) == ("s2.nii.gz", "s2")
    assert "truncated" in row["reason"] and row["cure"]
    assert "Put aside: 1 studies" in capsys.readouterr().out
    assert "1 studies were put aside" in (out / "card.md").read_text()
    assert _prepare(scans).run() == 3  # complete, but the scan is still missing
    assert "Nothing to do" in capsys.readouterr().out


def test_no_scan_usable_is_an_error(scans):
    for path in scans.iterdir():
        _truncate(path)
    with pytest.raises(
        DataError, match=r"no study could be prepared; the first: s0.nii.gz: .*gzip"
    ):
        _prepare(scans).prepare()
    assert not (scans.parent / "data").exists()


def test_hounsfield_units_must_be_promised(scans):
    with pytest.raises(DataError, match="the recipe needs voxels in HU"):
        _prepare(scans, units=None).prepare()


def test_a_second_call_does_nothing_and_another_recipe_must_be_meant(scans, made):
    assert _prepare(scans).prepare().fresh
    before = made.copy()
    result = _prepare(scans).prepare()
    assert (result.fresh, dict(result.splits), made) == (False, {"train": 5}, before)

    out = scans.parent / "data"
    with pytest.raises(DataError, match=r"another recipe. Cure: .* --overwrite"):
        _prepare(scans, spacing=(6, 3, 3)).prepare()
    assert open_dataset(out, "train")[0]["image"].shape == (20, 40, 40)
    _prepare(scans, spacing=(6, 3, 3), overwrite=True).prepare()
    assert open_dataset(out, "train")[0]["image"].shape == (10, 40, 40)

    (scans / "s4.nii.gz").unlink()
    with pytest.raises(DataError, match="made from other files"):
        _prepare(scans, spacing=(6, 3, 3)).prepare()
    assert [path.name for path in scans.parent.glob(".*")] == []


def test_a_folder_with_other_things_is_left_alone(scans):
    out = scans.parent / "data"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="the folder holds something else"):
            _prepare(scans, overwrite=overwrite).prepare()
    assert (out / "thesis.tex").read_text() == "years of work"


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
def test_kill_9_and_resume(scans, made, patch, finished):
    out = scans.parent / "data"
    code = _KILLED.format(patch=patch, scans=str(scans), out=str(out))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert not out.exists()
    with pytest.raises(DataError, match=r"there is no such dataset. Cure: prepare it"):
        open_dataset(out, "train")

    _prepare(scans).prepare()
    assert made == [f"s{index}" for index in range(finished, 5)]
    records = list(open_dataset(out, "train"))
    assert [record["study_id"] for record in records] == [f"s{index}" for index in range(5)]
    _prepare(scans, overwrite=True).prepare()
    for record, undisturbed in zip(records, open_dataset(out, "train"), strict=True):
        np.testing.assert_array_equal(record["image"], undisturbed["image"])
    assert [path.name for path in scans.parent.glob(".*")] == []


def test_kill_9_after_the_rename(scans, made):
    out = scans.parent / "data"
    patch = "assemble.shutil.rmtree = die"
    code = _KILLED.format(patch=patch, scans=str(scans), out=str(out))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert len(open_dataset(out, "train")) == 5
    assert (scans.parent / ".data.partial").exists()
    assert not _prepare(scans).prepare().fresh and made == []
    assert not (scans.parent / ".data.partial").exists()


def test_kill_9_with_workers_leaves_no_process(scans, made):
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
    _prepare(scans, spacing=(0.3, 0.6, 0.6)).prepare()
    assert set(made) == {f"s{index}" for index in range(5)} - done


def _wait(condition):
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _group(leader):
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


def test_a_damaged_record_is_made_again(scans, made):
    collection = _prepare(scans).collection()
    stage = scans.parent / ".data.partial"
    stage.mkdir()
    for job in staging.plan(collection, stage):
        staging.make(job)
    whole = sorted(stage.glob("*.npz"))
    content = bytearray(whole[1].read_bytes())
    content[len(content) // 2] ^= 1
    whole[1].write_bytes(content)
    _truncate(whole[3])
    _prepare(scans).prepare()
    assert made == ["s1", "s3"]
    assert [record["study_id"] for record in open_dataset(scans.parent / "data", "train")] == [
        f"s{index}" for index in range(5)
    ]


def test_two_processes_do_not_prepare_the_same(scans):
    stage = scans.parent / ".data.partial"
    stage.mkdir()
    with assemble._locked(stage), pytest.raises(DataError, match="another process prepares this"):
        _prepare(scans).prepare()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: _truncate(next(out.glob("*array_record*"))), "missing or not whole"),
        (lambda out: next(out.glob("*array_record*")).unlink(), "missing or not whole"),
        (lambda out: (out / "features.json").unlink(), "missing or not whole"),
        (lambda out: (out / "metadata.json").unlink(), "not a prepared dataset"),
        (lambda out: _truncate(out / "metadata.json"), "not a prepared dataset"),
        (shutil.rmtree, "there is no such dataset"),
    ],
    ids=["cut", "shard", "features", "metadata", "cut metadata", "folder"],
)
def test_an_incomplete_dataset_is_refused(scans, damage, message):
    _prepare(scans).prepare()
    out = scans.parent / "data"
    damage(out)
    with pytest.raises(DataError, match=rf"{message}.* Cure: prepare it again: python run.py"):
        open_dataset(out, "train")


def test_a_missing_split_is_named(scans):
    _prepare(scans).prepare()
    with pytest.raises(DataError, match=r"no split 'test'. Cure: choose one of: train"):
        open_dataset(scans.parent / "data", "test")


@dataclass(frozen=True)
class Crash:
    """A step that ends its process when it meets one of the scans, as a bad codec does."""

    study: str

    def __call__(self, volume):
        if volume.study_id == self.study:
            os._exit(1)
        return volume


def test_a_scan_that_kills_its_worker_is_put_aside(scans):
    recipe = preprocess.Recipe((Crash("s1"), preprocess.Orientation()))
    root = epath.Path(scans)
    studies = tuple(Study(f"s{n}", f"s{n}", "train", root / f"s{n}.nii.gz") for n in range(5))
    collection = Collection("crash", root, studies, recipe, units="HU")
    result = assemble.assemble(collection, scans.parent / "data", processes=2)
    assert (dict(result.splits), result.quarantined) == ({"train": 4}, 1)
    assert "s1,reading it kills the process" in (result.path / "quarantine.csv").read_text()


def test_scans_in_other_units_keep_their_values(scans):
    _prepare(scans, recipe="m3d", units=None).prepare()
    record = open_dataset(scans.parent / "data", "train")[0]
    assert record["units"] == "unit" and record["image"].shape == (32, 256, 256)
    values = record["image"] * record["scale"] + record["offset"]
    assert values.dtype == np.float32
    assert values.min() == 0 and values.max() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["whole", "fraction", "hot"])
def test_raw_values_survive_as_int16(kind):
    values = np.random.default_rng(0).normal(500, 100, (20, 30, 40))
    values = np.rint(values) if kind == "whole" else values
    values[0, 0, 0] = 1e6 if kind == "hot" else values[0, 0, 0]
    stored, scale, offset = quantize(values, "raw")
    back = stored * scale + offset
    inside = np.ones(values.shape, bool)
    if kind != "whole":
        inside = (values > np.percentile(values, 0.01)) & (values < np.percentile(values, 99.99))
    assert stored.dtype == np.int16
    assert np.abs(back - values)[inside].max() <= (0 if kind == "whole" else 0.51 * scale)
    assert scale == 1 if kind == "whole" else scale < 0.02


def test_values_that_are_not_finite_are_refused():
    values = np.zeros((2, 2, 2), np.float32)
    values[1, 1, 1] = np.nan
    with pytest.raises(DataError, match=r"scan.nii: the image has voxels that are not finite"):
        quantize(values, "HU", "scan.nii")


def test_help_names_every_option(tmp_path):
    code = "import tyro; from data_pipelines.prepare import Prepare; tyro.cli(Prepare)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    page = re.sub(r"\s+", " ", done.stdout)
    assert done.returncode == 0 and "{sample_ct,folder}" in page
    for option in (
        "--source",
        "--table",
        "--out",
        "--recipe",
        "--spacing",
        "--units",
        "--overwrite",
    ):
        assert option in page
    assert "Replace a dataset made with another recipe" in page


def test_the_metadata_prove_that_no_patient_is_in_two_splits(scans):
    _prepare(scans, test_fraction=0.5).prepare()
    metadata = json.loads((scans.parent / "data/metadata.json").read_text())
    train, test = (set(metadata["patients"][split]) for split in ("train", "test"))
    assert train and test and not train & test
    assert train | test == {f"s{index}" for index in range(5)}
    assert metadata["patients_in_two_splits"] == []
