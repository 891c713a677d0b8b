"""Leaks: the same scan is found through any recipe, other scans and patients are not."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from data_pipelines import preprocess, readers
from data_pipelines.datasets import leaks
from data_pipelines.datasets.leaks import Entry
from data_pipelines.volume import Volume

Change = Callable[[Volume], Volume]


def entry(volume: Volume | None = None, split: str = "train", **names: str) -> Entry:
    mark = np.zeros(512, np.float16) if volume is None else leaks.signature(volume)
    given = {"dataset": "data", "patient_id": "", "study_id": "s"} | names
    return Entry(split=split, signature=mark, **given)


def similarity(one: Volume, other: Volume) -> float | None:
    """Returns the similarity of a scan in train and one in test if it is a leak, else None."""
    found = leaks.find_leaks([entry(one), entry(other, "test")])
    return found[0].similarity if found else None


def plain(volume: Volume, array: np.ndarray) -> Volume:
    """Returns an array without an affine."""
    return Volume(array, volume.units)


def padded(volume: Volume) -> Volume:
    depth, height, width = volume.shape
    size = (depth + 40, height + 40, width + 10)
    return preprocess.ResizeWithPadOrCrop(size, value=-1024)(volume)


def circular(volume: Volume) -> Volume:
    """With the corners of each slice as a scanner pads them."""
    axes = (np.linspace(-1, 1, side) ** 2 for side in volume.shape[:2])
    outside = np.add.outer(*axes)[..., None] > 1.2
    return dataclasses.replace(
        volume, array=np.where(outside & (volume.array < -300), -3024, volume.array)
    )


def cropped(volume: Volume) -> Volume:
    """Crops to the box of voxels above -300 HU."""
    return preprocess.CropForeground(threshold=-300)(volume)


def noisy(volume: Volume) -> Volume:
    noise = np.random.default_rng(0).normal(0, 20, volume.shape)
    return dataclasses.replace(volume, array=volume.array + noise)


def spiked(volume: Volume) -> Volume:
    """With a voxel of metal, which takes the whole range of a min-max scaling."""
    array = volume.array.astype(np.int32)
    array[tuple(side // 2 for side in volume.shape)] = 20000
    return preprocess.m3d_cap()(dataclasses.replace(volume, array=array))


def eight_bit(volume: Volume) -> Volume:
    scaled = preprocess.ScaleIntensityRangePercentiles()(volume).array
    return dataclasses.replace(volume, array=(scaled * 255).astype(np.uint8), units="raw")


CHANGES: dict[str, Change] = {
    **{name: preprocess.RECIPES[name] for name in ("ct", "e3d", "m3d", "m3d_cap", "m3d_seg")},
    "m3d_refseg": preprocess.m3d_refseg(),
    **{f"{mm} mm": preprocess.Spacing((mm, mm, mm)) for mm in (1.0, 1.5, 3.0, 5.0)},
    "m3d_cap of ct": lambda volume: preprocess.m3d_cap()(preprocess.ct()(volume)),
    "window": preprocess.ScaleIntensityRange(-1350, 150),
    "padded": padded,
    "circular": circular,
    "cropped": cropped,
    "noisy": noisy,
    "metal": spiked,
    "8 bits": eight_bit,
    "transposed": lambda volume: plain(volume, volume.array.transpose(2, 0, 1)[:, ::-1]),
    "mirrored": lambda volume: plain(volume, volume.array[::-1, :, ::-1]),
}


@pytest.fixture(scope="module")
def samples(sample_scans: epath.Path) -> dict[str, Volume]:
    """Three patients: A, B, C."""
    files = {
        "A": "aorta_report/example_ct.nii.gz",
        "B": "example_ct.nii.gz",
        "C": "example_ct_dicom",
    }
    return {name: readers.read(sample_scans / file, units="HU") for name, file in files.items()}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_scan_is_found_whatever_was_done_to_it(
    samples: Mapping[str, Volume], change: str
) -> None:
    changed = CHANGES[change](samples["B"])
    found = similarity(samples["B"], changed)
    assert found is not None and found > 0.85
    assert similarity(changed, samples["C"]) is None


def test_two_processed_copies_are_found_as_the_scan_itself_is(
    samples: Mapping[str, Volume],
) -> None:
    for scan in (samples["A"], samples["C"]):
        coarse = preprocess.Spacing((5.0, 5.0, 5.0))(scan)
        assert similarity(coarse, preprocess.m3d_cap()(scan)) is not None


def test_other_patients_are_not_found_in_any_pose(samples: Mapping[str, Volume]) -> None:
    scans = [
        turned
        for scan in samples.values()
        for turned in (scan, preprocess.m3d()(scan), plain(scan, scan.array))
    ]
    entries = [entry(scan, str(number)) for number, scan in enumerate(scans)]
    pairs = {(leak.one.split, leak.other.split) for leak in leaks.find_leaks(entries)}
    # Each patient's three are alike, and nothing else is.
    assert pairs == {
        (str(i), str(j)) for i in range(9) for j in range(i + 1, 9) if i // 3 == j // 3
    }


def test_a_part_of_a_scan_is_out_of_reach(
    sample_scans: epath.Path, samples: Mapping[str, Volume]
) -> None:
    top = readers.read(sample_scans / "example_ct_sm.nii.gz", units="HU")
    assert similarity(samples["B"], top) is None


def test_an_affine_turns_the_signature_into_the_patients_axes(
    samples: Mapping[str, Volume],
) -> None:
    scan = preprocess.Spacing((5.0, 5.0, 5.0))(samples["B"])  # small enough to be looked at whole
    for codes in ("SPL", "RAI", "ASR"):
        turned = preprocess.Orientation(codes)(scan)
        np.testing.assert_allclose(leaks.signature(turned), leaks.signature(scan), atol=0.002)
    mirrored = dataclasses.replace(scan, array=scan.array[::-1])  # its affine lies now
    assert similarity(scan, mirrored) is None


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 3, 3), (1, 64, 64), (4, 4, 4), (32, 32, 32)])
def test_small_and_shapeless_volumes_equal_their_copies_only(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    volumes = [Volume(rng.normal(size=shape), "raw") for _ in range(8)]
    entries = [entry(volume, split) for volume in volumes for split in ("train", "test")]
    found = leaks.find_leaks(entries)
    assert [leak.similarity for leak in found] == pytest.approx([1] * 8, abs=1e-5)
    assert {(entries.index(leak.one), entries.index(leak.other)) for leak in found} == {
        (number, number + 1) for number in range(0, 16, 2)
    }


def test_two_values_equal_their_copy_and_constants_equal_nothing() -> None:
    binary = np.zeros((8, 8, 8), np.uint8)
    binary[2:5, 3:6, 1:7] = 1
    assert similarity(Volume(binary, "raw"), Volume(binary, "raw")) == pytest.approx(1, abs=1e-5)
    assert similarity(Volume(binary, "raw"), Volume(1 - binary, "raw")) is None
    assert similarity(Volume(binary * 0, "raw"), Volume(binary * 0, "raw")) is None


def test_a_signature_is_small(samples: Mapping[str, Volume]) -> None:
    mark = leaks.signature(samples["B"])
    assert (mark.dtype, mark.nbytes) == (np.float16, 1024)


def test_the_same_place_makes_a_duplicate_and_another_one_a_leak(
    samples: Mapping[str, Volume],
) -> None:
    scan = samples["B"]
    entries = [entry(scan), entry(scan), entry(scan, "test"), entry(scan, dataset="more")]
    found = leaks.find_leaks(entries)
    kinds = {(entries.index(leak.one), entries.index(leak.other)): leak.kind for leak in found}
    assert kinds == {(i, j): "volume" for i in range(4) for j in range(i + 1, 4)} | {
        (0, 1): "duplicate"
    }


def test_blocks_find_what_a_single_product_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    volumes = [Volume(rng.normal(size=(6, 6, 6)), "raw") for _ in range(5)]
    known = [dataclasses.replace(volume, affine=np.eye(4)) for volume in volumes]
    entries = [entry(volume, str(i)) for i, volume in enumerate([*volumes, *known, *volumes])]

    def pairs() -> set[tuple[str, str]]:
        return {(leak.one.split, leak.other.split) for leak in leaks.find_leaks(entries)}

    whole = pairs()
    monkeypatch.setattr(leaks, "_BLOCK", 2)
    assert pairs() == whole == {(str(i), str(j)) for i in range(15) for j in range(i + 5, 15, 5)}


def test_a_patient_in_two_splits_is_found_once_for_each_two_places() -> None:
    entries = [
        entry(patient_id="p", study_id="1"),
        entry(patient_id="p", study_id="2"),
        entry(split="test", patient_id="p", study_id="3"),
        entry(split="test", patient_id="p", study_id="4"),
        entry(dataset="more", patient_id="p", study_id="5"),  # train in both is no leak
        entry(patient_id="q"),
        entry(),
        entry(split="test"),  # no id is not the same patient
    ]
    found = leaks.find_leaks(entries)
    names = {(leak.kind, leak.one.study_id, leak.other.study_id) for leak in found}
    assert names == {("patient", "1", "3"), ("patient", "3", "5")}


def test_report_and_csv_name_both_studies(tmp_path: Path) -> None:
    volume = Volume(np.arange(512.0).reshape(8, 8, 8), "raw")
    one = entry(volume, patient_id="p", study_id="scan,1")
    other = entry(volume, "test", patient_id="p", study_id="scan2")
    found = leaks.find_leaks([one, other])
    text = leaks.report(found)
    assert "1 patient, 1 volume" in text
    assert "data:train scan,1 (patient p)  =  data:test scan2 (patient p)" in text
    leaks.write(found, tmp_path / "leaks.csv")
    with (tmp_path / "leaks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["patient", "volume"]
    assert [row["similarity"] for row in rows] == ["", "1.0000"]
    assert {(row["study_id"], row["other_study_id"]) for row in rows} == {("scan,1", "scan2")}


def test_nothing_found_is_said_and_a_long_list_is_cut(tmp_path: Path) -> None:
    assert leaks.find_leaks([]) == []
    assert "No patient" in leaks.report([])
    leaks.write([], tmp_path / "leaks.csv")
    assert (tmp_path / "leaks.csv").read_text().count("\n") == 1
    splits = [entry(split=str(number), patient_id="p") for number in range(8)]
    assert leaks.report(leaks.find_leaks(splits)).endswith("and 8 more")
