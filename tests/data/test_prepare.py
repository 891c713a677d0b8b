"""Preparation with broken scans, other recipes and damaged results."""

import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from data_pipelines import preprocess
from data_pipelines.datasets import assemble, open_dataset, runners
from data_pipelines.datasets.records import quantize
from data_pipelines.datasets.study import Collection, Study
from data_pipelines.errors import DataError
from data_pipelines.prepare import QUARANTINED, Prepare
from data_pipelines.volume import Volume
from tests.data.crops import prepare_crops, truncate


def test_a_broken_scan_is_put_aside(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(scans / "s2.nii.gz")
    assert prepare_crops(scans, workers=2).run() == QUARANTINED == 3
    out = scans.parent / "data"
    ids = [record["study_id"] for record in open_dataset(out, "train")]
    assert ids == ["s0", "s1", "s3", "s4"]
    (row,) = csv.DictReader((out / "quarantine.csv").open())
    assert (row["file"], row["study_id"]) == ("s2.nii.gz", "s2")
    assert "truncated" in row["reason"] and row["cure"]
    assert "Put aside: 1 studies or rows" in capsys.readouterr().out
    assert "1 studies or rows of tables were put aside" in (out / "card.md").read_text()
    assert prepare_crops(scans).run() == 3  # complete, but the scan is still missing
    assert "Nothing to do" in capsys.readouterr().out


def test_no_scan_usable_is_an_error(scans: Path) -> None:
    for path in scans.iterdir():
        truncate(path)
    with pytest.raises(
        DataError,
        match=r"no study could be prepared; the first: s0.nii.gz: the compressed .* truncated",
    ):
        prepare_crops(scans).prepare()
    assert not (scans.parent / "data").exists()


def test_hounsfield_units_must_be_promised(scans: Path) -> None:
    with pytest.raises(DataError, match="the recipe needs voxels in HU"):
        prepare_crops(scans, units=None).prepare()


def test_a_second_call_does_nothing_and_another_recipe_must_be_meant(
    scans: Path, made: list[str]
) -> None:
    assert prepare_crops(scans).prepare().fresh
    before = made.copy()
    result = prepare_crops(scans).prepare()
    assert (result.fresh, dict(result.splits), made) == (False, {"train": 5}, before)

    out = scans.parent / "data"
    with pytest.raises(DataError, match=r"another recipe. Cure: .* --overwrite"):
        prepare_crops(scans, spacing=(6, 3, 3)).prepare()
    assert open_dataset(out, "train")[0]["image"].shape == (20, 40, 40)
    prepare_crops(scans, spacing=(6, 3, 3), overwrite=True).prepare()
    assert open_dataset(out, "train")[0]["image"].shape == (10, 40, 40)

    (scans / "s4.nii.gz").unlink()
    with pytest.raises(DataError, match="made from other files"):
        prepare_crops(scans, spacing=(6, 3, 3)).prepare()
    assert [path.name for path in scans.parent.glob(".*")] == []


def test_a_folder_with_other_things_is_left_alone(scans: Path) -> None:
    out = scans.parent / "data"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="the folder holds something else"):
            prepare_crops(scans, overwrite=overwrite).prepare()
    assert (out / "thesis.tex").read_text() == "years of work"


def test_two_processes_do_not_prepare_the_same(scans: Path) -> None:
    stage = scans.parent / ".data.partial"
    stage.mkdir()
    with (
        assemble._locked(epath.Path(stage)),
        pytest.raises(DataError, match="another process prepares this"),
    ):
        prepare_crops(scans).prepare()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: truncate(next(out.glob("*array_record*"))), "missing or incomplete"),
        (lambda out: next(out.glob("*array_record*")).unlink(), "missing or incomplete"),
        (lambda out: (out / "features.json").unlink(), "missing or incomplete"),
        (lambda out: (out / "metadata.json").unlink(), "not a prepared dataset"),
        (lambda out: truncate(out / "metadata.json"), "not a prepared dataset"),
        (shutil.rmtree, "there is no such dataset"),
    ],
    ids=["cut", "shard", "features", "metadata", "cut metadata", "folder"],
)
def test_an_incomplete_dataset_is_refused(
    scans: Path, damage: Callable[[Path], None], message: str
) -> None:
    prepare_crops(scans).prepare()
    out = scans.parent / "data"
    damage(out)
    with pytest.raises(DataError, match=rf"{message}.* Cure: prepare it again: python run.py"):
        open_dataset(out, "train")


def test_a_flipped_bit_is_found_when_the_record_is_read(scans: Path) -> None:
    prepare_crops(scans).prepare()
    out = scans.parent / "data"
    shard = next(out.glob("*array_record*"))
    content = bytearray(shard.read_bytes())
    content[np.frombuffer(content, np.uint8).nonzero()[0][-5000]] ^= 4
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"record \d of split train is damaged. Cure: prepare it"):
        list(open_dataset(out, "train"))


def test_a_missing_split_is_named(scans: Path) -> None:
    prepare_crops(scans).prepare()
    with pytest.raises(DataError, match=r"no split 'test'. Cure: choose one of: train"):
        open_dataset(scans.parent / "data", "test")


@dataclass(frozen=True)
class Crash:
    """A step that ends its process when it meets one of the scans, as a bad codec does."""

    study: str

    def __call__(self, volume: Volume) -> Volume:
        if volume.study_id == self.study:
            os._exit(1)
        return volume


def test_a_scan_that_kills_its_worker_is_put_aside(scans: Path) -> None:
    recipe = preprocess.Recipe((Crash("s1"), preprocess.Orientation()))
    root = epath.Path(scans)
    studies = tuple(Study(f"s{n}", f"s{n}", "train", root / f"s{n}.nii.gz") for n in range(5))
    collection = Collection("crash", root, studies, recipe, units="HU")
    run = functools.partial(runners.in_processes, workers=2)
    result = assemble.assemble(collection, scans.parent / "data", run)
    assert (dict(result.splits), result.quarantined) == ({"train": 4}, 1)
    assert "s1,reading it kills the process" in (result.path / "quarantine.csv").read_text()


def test_scans_in_other_units_keep_their_values(scans: Path) -> None:
    prepare_crops(scans, recipe="m3d", units=None).prepare()
    record = open_dataset(scans.parent / "data", "train")[0]
    assert record["units"] == "unit" and record["image"].shape == (32, 256, 256)
    values = record["image"] * record["scale"] + record["offset"]
    assert values.dtype == np.float32
    assert values.min() == 0 and values.max() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["whole", "fraction", "hot"])
def test_raw_values_survive_as_int16(kind: str) -> None:
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


def test_values_that_are_not_finite_are_refused() -> None:
    values = np.zeros((2, 2, 2), np.float32)
    values[1, 1, 1] = np.nan
    with pytest.raises(DataError, match=r"scan.nii: the image has voxels that are not finite"):
        quantize(values, "HU", "scan.nii")


def test_help_names_every_option(tmp_path: Path) -> None:
    code = "import tyro; from data_pipelines.prepare import Prepare; tyro.cli(Prepare)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    page = re.sub(r"\s+", " ", done.stdout)
    assert done.returncode == 0 and "{sample_ct,folder,m3d_cap,m3d_vqa,m3d_seg}" in page
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


def test_the_metadata_prove_that_no_patient_is_in_two_splits(scans: Path) -> None:
    prepare_crops(scans, test_fraction=0.5).prepare()
    metadata = json.loads((scans.parent / "data/metadata.json").read_text())
    train, test = (set(metadata["patients"][split]) for split in ("train", "test"))
    assert train and test and not train & test
    assert train | test == {f"s{index}" for index in range(5)}
    assert metadata["patients_in_two_splits"] == []


def test_volumes_that_were_prepared_before_are_kept(tmp_path: Path) -> None:
    """M3D's own .npy files: float32 (1, 32, 256, 256) of 0..1, and 8-bit arrays."""
    rng = np.random.default_rng(0)
    (tmp_path / "npy").mkdir()
    unit = rng.random((1, 8, 16, 16), np.float32)
    byte = rng.integers(0, 255, (8, 16, 16), np.uint8)
    for units, name, array in (("unit", "unit", unit), ("raw", "byte", byte)):
        folder = tmp_path / "npy" / name
        folder.mkdir()
        np.save(folder / "a.npy", array)
        out = tmp_path / name
        Prepare(
            "folder", str(folder), out=str(out), recipe="as_is", units=units, workers=0
        ).prepare()
        record = open_dataset(out, "train")[0]
        values = record["image"] * record["scale"] + record["offset"]
        np.testing.assert_allclose(values, array.reshape(8, 16, 16), atol=1e-4)
        assert record["units"] == units and not record["affine_valid"]
