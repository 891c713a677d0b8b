"""The layout of the Medical Segmentation Decathlon and of nnU-Net, read as its authors mean it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_pipelines import preprocess
from data_pipelines.datasets import open_dataset
from data_pipelines.datasets.folder import folder
from data_pipelines.errors import DataError
from data_pipelines.prepare import Prepare

_RECIPE = preprocess.mr()


def _tree(root: Path, *, test: int, channel: str = "") -> Path:
    """Three labelled MR cases, spleen 1 and liver 2, and `test` cases without labels."""
    rng = np.random.default_rng(0)
    for name, count in (("imagesTr", 3), ("labelsTr", 3), ("imagesTs", test)):
        for number in range(count):
            labels = np.zeros((20, 18, 16), np.uint8)
            labels[4:9, 5:12, 3:8], labels[10:15, 5:12, 3:8] = 1, 2
            image = (labels * 200 + rng.integers(20, 90, labels.shape)).astype(np.int16)
            array = labels if name == "labelsTr" else image
            case = number + (10 if name == "imagesTs" else 0)
            end = "" if name == "labelsTr" else channel
            path = root / name / f"case_{case:03}{end}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([3.0, 3, 3, 1])), path)
    (root / "imagesTr" / "._case_000.nii.gz").write_bytes(b"copied by macOS")
    labels_of = {"background": 0, "spleen": 1, "liver": 2}
    (root / "dataset.json").write_text(json.dumps({"labels": labels_of}))
    return root


@pytest.mark.parametrize("channel", ["", "_0000"])
def test_images_get_their_masks_and_published_split(tmp_path: Path, channel: str) -> None:
    """Label maps are no scans, every case is a patient, and imagesTs is the split "test"."""
    collection = folder(_tree(tmp_path / "Task04", test=2, channel=channel), _RECIPE)
    found = {study.patient_id: (study.split, study.mask) for study in collection.studies}
    masks = tmp_path / "Task04" / "labelsTr"
    assert found == {
        **{f"case_00{n}": ("train", masks / f"case_00{n}.nii.gz") for n in range(3)},
        "case_010": ("test", None),
        "case_011": ("test", None),
    }
    assert "a case is a patient" in collection.notes[0]


def test_without_test_images_a_case_is_held_out(tmp_path: Path) -> None:
    studies = folder(_tree(tmp_path / "Task04", test=0), _RECIPE).studies
    splits = [study.split for study in studies]
    assert splits.count("test") >= 1 and splits.count("train") >= 1 and len(splits) == 3
    assert all(study.mask for study in studies)


def test_structures_by_the_names_of_dataset_json(tmp_path: Path) -> None:
    """In the order asked for, not in the order of the values."""
    root = _tree(tmp_path / "Task04", test=1)
    out = tmp_path / "data"
    options = {"recipe": "mr", "structures": ("liver", "spleen"), "workers": 0}
    assert Prepare("folder", str(root), out=str(out), **options).run() == 0
    for record in open_dataset(out, "train"):
        values, counts = np.unique(record["mask"], return_counts=True)
        assert values.tolist() == [0, 1, 2] and (counts[1:] == 5 * 7 * 5).all()
        # The liver has the larger index along the file's first axis, which runs to the left here.
        left = [np.argwhere(record["mask"] == value)[:, 2].mean() for value in (1, 2)]
        assert left[0] < left[1]
    (record,) = open_dataset(out, "test")
    assert not record["mask_valid"]


def test_a_case_of_several_channels_is_refused(tmp_path: Path) -> None:
    root = _tree(tmp_path / "Task01", test=0, channel="_0000")
    for path in list((root / "imagesTr").glob("case_001*")):
        path.with_name("case_001_0001.nii.gz").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="the case case_001 has 2 images") as caught:
        folder(root, _RECIPE)
    assert "--table" in caught.value.cure
