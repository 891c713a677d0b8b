"""Which numbers can be HU: real CT passes in every shape, wrongly rescaled CT does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from etils import epath

from data_pipelines import readers
from data_pipelines.errors import DataError
from data_pipelines.oddities import oddities
from data_pipelines.plausible import SortedSample, check_values
from data_pipelines.volume import Units, Volume
from tests.data.scans import oblique, random_volume

Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def ct(sample_scans: epath.Path) -> Volume:
    """An abdomen with the air around it."""
    return readers.read(sample_scans / "example_ct_sm.nii.gz", units="HU")


def _with(volume: Volume, array: np.ndarray) -> Volume:
    return Volume(array, volume.units, affine=volume.affine)


def _only(array: np.ndarray, units: Units = "HU") -> Volume:
    return Volume(array, units, affine=np.eye(4))


def _padded(array: np.ndarray, value: int = -3024) -> np.ndarray:
    """The array with everything outside a circle replaced, as scanners do."""
    rows, columns = np.indices(array.shape[:2])
    outside = np.hypot(rows / array.shape[0] - 0.5, columns / array.shape[1] - 0.5) > 0.55
    array = array.copy()
    array[outside] = value
    return array


def _with_metal(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.int32)
    array[40:50, 40:50, 10:13] = 30000
    return array


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a,
        lambda a: a.astype(np.float32),
        lambda a: a.clip(-1000, 1000),
        lambda a: a.clip(-1024, 3071),
        _padded,
        lambda a: _padded(a, -2000),
        _with_metal,
        lambda a: a + np.random.default_rng(0).normal(0, 60, a.shape),
        lambda a: a[30:50, 40:60, 5:25],  # inside the body, no air
    ],
)
def test_real_ct_passes(ct: Volume, change: Change) -> None:
    check_values(_with(ct, change(ct.array)))


@pytest.mark.parametrize("mean, noise", [(60, 12), (130, 30), (30, 4), (450, 40), (-850, 60)])
def test_a_crop_of_one_organ_passes(mean: float, noise: float) -> None:
    """Muscle, liver with contrast, brain, blood with contrast; lung, which holds vessels."""
    array = np.random.default_rng(0).normal(mean, noise, (20, 20, 20))
    array[:3] += 0 if mean > 0 else 880
    check_values(_only(array.astype(np.float32)))


def test_a_head_without_air_around_it_passes() -> None:
    """Skull is dense and has neither fat nor air, but is not uniform as soft tissue is."""
    rng = np.random.default_rng(0)
    array = rng.normal(35, 8, (30, 30, 30))
    array[:6] = rng.uniform(300, 1900, (6, 30, 30))
    check_values(_only(array.astype(np.float32)))


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda a: a + 1024, "had not been applied"),
        (lambda a: a + 1000, "had not been applied"),
        (lambda a: (a + 1024).clip(0), "had not been applied"),
        (lambda a: _padded(a + 1024, -2000), "had not been applied"),
        (lambda a: (a + 1024)[30:50, 40:60, 5:25], "had not been applied"),
        (lambda a: a - 1024, "applied twice"),
        (lambda a: a.clip(-1000) - 1024, "applied twice"),
        (lambda a: (a - 1024)[30:50, 40:60, 5:25], "or twice"),
        (lambda a: a * 0.5, "slope were too small"),
        (lambda a: a * 2, "applied twice, or the slope were too large"),
        (lambda a: a.astype(np.float32) * 10, "slope were too large"),
        (lambda a: (a + 1024) * 0.5 - 1024, "rescaled wrongly"),
        (lambda a: ((a + 1000) / 2000).clip(0, 1), "too narrow"),
        (lambda a: (a / 1000).clip(-1, 1), "too narrow"),
        (lambda a: (a - a.mean()) / a.std(), "too narrow"),
        (lambda a: ((a + 1000) / 2000).clip(0, 1) * 255, "8-bit"),
        (lambda a: (((a + 160) / 400).clip(0, 1) * 255).astype(np.int16), "8-bit"),
        (lambda a: (((a + 1000) / 2000).clip(0, 1) * 255).astype(np.uint8), "8-bit"),
        (lambda a: np.full_like(a, -1000), "all voxels are -1000"),
    ],
)
def test_wrongly_rescaled_ct_is_refused(ct: Volume, change: Change, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as raised:
        check_values(_with(ct, change(ct.array)))
    assert raised.value.cure


def test_mr_is_no_hu(sample_scans: epath.Path) -> None:
    path = sample_scans / "example_mr_sm.nii.gz"
    with pytest.raises(DataError, match="as in MR"):
        check_values(readers.read(path, units="HU"))
    check_values(readers.read(path))


@pytest.mark.parametrize("high, passes", [(1.0, True), (1.0001, True), (1.1, False), (255, False)])
def test_unit_is_zero_to_one(high: float, passes: bool) -> None:
    volume = _only(np.linspace(0, high, 27, dtype=np.float32).reshape(3, 3, 3), "unit")
    if passes:
        check_values(volume)
    else:
        with pytest.raises(DataError, match="not within 0 to 1"):
            check_values(volume)


@pytest.mark.parametrize("units", ["HU", "unit", "raw"])
def test_a_constant_volume_is_refused(units: Units) -> None:
    with pytest.raises(DataError, match="all voxels are 0"):
        check_values(_only(np.zeros((3, 3, 3), np.int16), units))


def test_padding_is_lone_and_air_is_not(ct: Volume) -> None:
    padded = SortedSample.of(_with(ct, _padded(ct.array, -2000)))
    assert [value for value, _ in padded.padding] == [-2000]
    assert padded.ordered[0] > -1200
    assert not SortedSample.of(_with(ct, ct.array - 1024)).padding  # all of it has neighbours


def test_a_sample_of_a_big_volume_sees_all_columns() -> None:
    """A stride that divides the row length would fall on the same columns for ever."""
    array = np.broadcast_to(np.arange(256, dtype=np.int16), (64, 256, 256))
    sample = SortedSample.of(_only(np.ascontiguousarray(array), "raw"))
    assert len(sample.ordered) < 2_200_000
    assert len(np.unique(sample.ordered)) == 256


def test_oddities_are_measured() -> None:
    volume = random_volume((8, 40, 40), np.diag([7.0, 1.0, 1.0, 1.0]))
    array = volume.array.copy()
    array[0] = -3024
    array[1, 0] = 9000
    told = " ".join(oddities(oblique(dataclasses.replace(volume, array=array), (11, 0, 0))))
    for fact in (
        "only 8 voxels along D",
        "oblique, by up to 11.0 degrees",
        "7.0 times longer",
        "second side measures 40 mm",
        "12.5% of the voxels are padding (-3024)",
        "0.36% of the voxels are outside -1024 to 3071 HU",
    ):
        assert fact in told


def test_oddities_of_what_is_missing() -> None:
    mask = np.zeros((20, 20, 20), np.uint8)
    array = np.arange(8000, dtype=np.int16).reshape(mask.shape)
    told = oddities(Volume(array, "raw", mask=mask))
    assert told == [
        "There is no affine: left and right are unknown.",
        "There is no spacing: sizes are unknown.",
        "The mask is empty.",
    ]


def test_a_usual_scan_is_not_odd(ct: Volume) -> None:
    assert oddities(_with(ct, ct.array.clip(-1023))) == []
