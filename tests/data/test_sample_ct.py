"""The sample dataset, made from the real scans and compared with the files themselves."""

import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from etils import epath

from data_pipelines import preprocess, readers
from data_pipelines.datasets import RecordSource, open_dataset
from data_pipelines.datasets.records import Record
from data_pipelines.prepare import Prepare


@pytest.fixture(scope="module")
def dataset(sample_scans: epath.Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "sample_ct"
    assert Prepare("sample_ct", source=str(sample_scans), out=str(out), workers=2).run() == 0
    return out


def _records(dataset: Path) -> dict[str, Record]:
    sources = [open_dataset(dataset, split) for split in ("train", "test")]
    return {record["study_id"]: record for source in sources for record in source}


def _spl(path: Path) -> np.ndarray:
    """A file stored R, A, S, as (S, P, L), by hand."""
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]


def test_splits_go_by_patient(dataset: Path) -> None:
    patients = {
        split: {
            (record["study_id"], record["patient_id"]) for record in open_dataset(dataset, split)
        }
        for split in ("train", "test")
    }
    assert patients["train"] == {("B", "B"), ("B-top", "B")}
    assert patients["test"] == {("A", "A"), ("A-crop", "A"), ("C", "C")}
    metadata = json.loads((dataset / "metadata.json").read_text())
    assert metadata["patients"] == {"train": ["B"], "test": ["A", "C"]}
    assert metadata["patients_in_two_splits"] == []


def test_a_scan_already_at_3_mm_is_only_turned_and_clipped(
    dataset: Path, sample_scans: epath.Path
) -> None:
    records = _records(dataset)
    for study, image, mask in (
        ("B", "example_ct.nii.gz", "spine_report/example_ct_report/totalseg.nii.gz"),
        ("B-top", "example_ct_sm.nii.gz", "example_seg.nii.gz"),
    ):
        expected = _spl(sample_scans / image).clip(-1024, 3071)
        np.testing.assert_array_equal(records[study]["image"], expected)
        np.testing.assert_array_equal(records[study]["mask"], _spl(sample_scans / mask))
    assert len(np.unique(records["B-top"]["mask"])) == 1 + 41


def test_a_resampled_image_is_what_the_recipe_gives(
    dataset: Path, sample_scans: epath.Path
) -> None:
    record = _records(dataset)["C"]
    volume = preprocess.ct()(readers.read(sample_scans / "example_ct_dicom"))
    np.testing.assert_array_equal(record["image"], np.rint(volume.array))
    assert volume.affine is not None
    np.testing.assert_allclose(record["affine"], volume.affine)
    np.testing.assert_allclose(record["to_source"], volume.to_source)
    assert tuple(record["source_shape"]) == volume.source_shape == (20, 512, 512)
    np.testing.assert_allclose(record["spacing"], 3.0)
    assert (record["units"], record["scale"], record["offset"]) == ("HU", 1.0, 0.0)


def test_the_nifti_mask_lies_on_the_dicom_scan(dataset: Path, sample_scans: epath.Path) -> None:
    record = _records(dataset)["C"]
    value = {name: number for number, name in open_dataset(dataset, "test").mask_names.items()}
    mean = {
        organ: record["image"][record["mask"] == value[organ]].mean()
        for organ in ("aorta", "liver", "spleen", "humerus_left")
    }
    assert mean["aorta"] == pytest.approx(177, abs=8), mean  # HU, with contrast medium
    assert 60 < mean["liver"] < 140 and 60 < mean["spleen"] < 160 and mean["humerus_left"] > 180
    stored = np.unique(
        np.asarray(nib.Nifti1Image.from_filename(sample_scans / "example_seg_dicom.nii.gz").dataobj)
    )
    assert set(np.unique(record["mask"])) == set(stored)
    assert record["annotated"].all()


def test_the_crop_of_a_has_its_organs_where_they_were(
    dataset: Path, sample_scans: epath.Path
) -> None:
    record = _records(dataset)["A-crop"]
    names = open_dataset(dataset, "test").mask_names
    organs = {names[int(value)] for value in np.flatnonzero(record["annotated"])}
    assert organs == {
        "aorta",
        "brachiocephalic_trunk",
        "common_carotid_artery_left",
        "subclavian_artery_left",
        "vertebrae_T12",
    }
    file = nib.Nifti1Image.from_filename(
        sample_scans / "aorta_report/test_result/models/aorta.nii.gz"
    )
    before = np.argwhere(np.asarray(file.dataobj))
    after = np.argwhere(record["mask"] == 52)
    assert len(after) * 27 == pytest.approx(len(before) * 1.5**3, rel=0.05)  # mm^3
    centre = nib.affines.apply_affine(record["affine"], after.mean(0))
    assert np.abs(centre - nib.affines.apply_affine(file.affine, before.mean(0))).max() < 1.5  # mm


def test_a_second_build_gives_equal_records(
    dataset: Path, sample_scans: epath.Path, tmp_path: Path
) -> None:
    Prepare("sample_ct", source=str(sample_scans), out=str(tmp_path / "b"), workers=0).prepare()
    first, second = _records(dataset), _records(tmp_path / "b")
    assert list(first) == list(second)
    for study, record in first.items():
        assert record.keys() == second[study].keys()
        for key, value in record.items():
            np.testing.assert_array_equal(value, second[study][key], err_msg=f"{study} {key}")
            assert np.asarray(value).dtype == np.asarray(second[study][key]).dtype


def _image_sum(source: RecordSource, index: int) -> int:
    return int(source[index]["image"].astype(np.int64).sum())


def test_workers_get_the_open_dataset(dataset: Path) -> None:
    source = open_dataset(dataset, "train")
    here = [_image_sum(source, index) for index in range(len(source))]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(_image_sum, [source, source], [0, -1]))
    assert there == [here[0], here[1]]
    with pytest.raises(IndexError):
        source[2]


def test_reading_is_quiet_and_needs_neither_tensorflow_nor_jax(dataset: Path) -> None:
    code = (
        "import sys; from data_pipelines.datasets import open_dataset;"
        f"r = open_dataset({str(dataset)!r}, 'train')[0];"
        "print(r['study_id'], {'tensorflow', 'jax'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("B set()\n", "")


def test_the_card_tells_what_to_be_careful_with(dataset: Path) -> None:
    card = json.loads((dataset / "card.json").read_text())
    assert card["splits"] == {
        "train": {"studies": 2, "patients": 1},
        "test": {"studies": 3, "patients": 2},
    }
    assert card["spacing_mm"]["before"]["max"] == [3, 3, 3]
    assert card["spacing_mm"]["before"]["min"] == pytest.approx([1.5, 0.977, 0.977], abs=1e-3)
    assert card["shape"]["before"]["max"] == [191, 512, 512]
    assert card["masks"]["aorta"] == 3
    voxels = sum(record["image"].size for record in _records(dataset).values())
    assert sum(card["hu_histogram"]["voxels"]) == voxels
    page = (dataset / "card.md").read_text()
    assert "B and C are probably two patients, but this is not proven" in page
    assert "| vertebrae_T12 | 4 |" in page
