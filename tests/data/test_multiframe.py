"""Enhanced multi-frame DICOM: the frames of one file are the slices of a volume."""

from __future__ import annotations

import pathlib
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from etils import epath
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from data_pipelines import readers
from data_pipelines.errors import DataError
from tests.data.dicom_files import (
    OBLIQUE,
    SHAPE,
    ct_slice,
    enhanced,
    group,
    position,
    real_slices,
    stored,
    write,
)
from tests.data.scans import affine_of

SHUFFLED = (3, 0, 5, 1, 4, 2)


@pytest.mark.parametrize("encoding", ["", RLELossless, "deflated"])
def test_is_the_volume_of_its_single_slices(tmp_path: pathlib.Path, encoding: str) -> None:
    """In any order of frames and any encoding, values and affine are those of classic files."""
    dataset = enhanced(SHUFFLED)
    if encoding == "deflated":
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    elif encoding:
        dataset.compress(encoding, generate_instance_uid=False)
    path = write(tmp_path / "enhanced", [dataset]) / "03"
    classic = readers.read(write(tmp_path / "classic", [ct_slice(i) for i in range(SHAPE[0])]))
    volume = readers.read(path)
    np.testing.assert_array_equal(volume.array, stored().astype(int) - 1024)
    np.testing.assert_allclose(affine_of(volume), affine_of(classic))
    assert (volume.units, volume.array.dtype, volume.source) == ("HU", np.int16, str(path))


def test_a_real_series_converted_to_one_file(
    sample_scans: epath.Path, tmp_path: pathlib.Path
) -> None:
    """A legacy-converted enhanced CT, in JPEG 2000, has the voxels and affine of its series."""
    series = real_slices(sample_scans / "example_ct_dicom")
    converted = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        series, "1.2.5", 1, "1.2.4", 1, transfer_syntax_uid=JPEG2000Lossless
    )
    converted.save_as(tmp_path / "ct.dcm")
    volume, classic = (readers.read(p) for p in (tmp_path, sample_scans / "example_ct_dicom"))
    np.testing.assert_array_equal(volume.array, classic.array)
    np.testing.assert_allclose(affine_of(volume), affine_of(classic))
    assert volume.units == "HU" and volume.array.dtype == np.int16


def test_rescale_per_frame(tmp_path: pathlib.Path) -> None:
    """Each frame has its own slope; PET is raw."""
    dataset = enhanced(Modality="PT")
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        frame.PixelValueTransformationSequence[0].RescaleSlope = index + 0.5
        frame.PixelValueTransformationSequence[0].RescaleIntercept = 1
    volume = readers.read(write(tmp_path / "a", [dataset]))
    expected = stored() * (np.arange(6) + 0.5)[:, None, None] + 1
    np.testing.assert_allclose(volume.array, expected, rtol=1e-6)
    assert volume.units == "raw"


def test_several_files_are_one_series(tmp_path: pathlib.Path) -> None:
    """Halves of a volume in two files go together, and count as slices where series are listed."""
    folder = write(tmp_path / "a", [enhanced((4, 1, 2)), enhanced((0, 5, 3))])
    np.testing.assert_array_equal(readers.read(folder).array, stored().astype(int) - 1024)
    write(folder, [enhanced(range(4), SeriesInstanceUID="9.9")], prefix="other")
    with pytest.raises(DataError, match="1: 6 slices of 5x4; 2: 4 slices of 5x4"):
        readers.read(folder)


def _frames(**macros: Any) -> list[pydicom.Dataset]:
    return [
        group(**({"PlanePositionSequence": {"ImagePositionPatient": position(i)}} | macros))
        for i in range(SHAPE[0])
    ]


def _turned() -> list[pydicom.Dataset]:
    frames = list(enhanced().PerFrameFunctionalGroupsSequence)
    frames[2].update(group(PlaneOrientationSequence={"ImageOrientationPatient": list(OBLIQUE)}))
    return frames


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        (enhanced((0, 1, 2, 0, 1, 2)), "several phases, echoes .* 6 slices at 3 positions"),
        (enhanced((0, 1, 2, 4, 5)), "missing or unevenly spaced"),
        (enhanced((0, 1, 2, 3, 3)), "2 slices of 5 share their position"),
        (enhanced(NumberOfFrames=7), r"\(7 frames\) with 6 positions"),
        (enhanced(NumberOfFrames=900_000_000), r"with 6 positions"),
        (enhanced(PerFrameFunctionalGroupsSequence=None), "ultrasound"),
        (enhanced(SharedFunctionalGroupsSequence=None), "no PixelSpacing"),
        (enhanced(PerFrameFunctionalGroupsSequence=_frames()), "no linear rescale"),
        (
            enhanced(
                Modality="MR",
                PerFrameFunctionalGroupsSequence=_frames(PlanePositionSequence={}),
            ),
            "no ImagePositionPatient",
        ),
        (enhanced(PerFrameFunctionalGroupsSequence=_turned()), "differs .* in direction"),
        (enhanced(slope=0), "RescaleSlope of 0"),
        (enhanced(PixelData=bytes(100)), "has 100 bytes, the header says 240"),
        (enhanced(PixelData=bytes(400)), "has 400 bytes, the header says 240"),
        (enhanced(Rows=30000, Columns=30000), "claims 5400000000 pixels"),
    ],
)
def test_refuses(tmp_path: pathlib.Path, dataset: pydicom.Dataset, problem: str) -> None:
    """Each error names the file, the problem and a cure, and no patient."""
    path = write(tmp_path / "a", [dataset]) / "03"
    with pytest.raises(DataError, match=problem) as caught:
        readers.read(path)
    assert caught.value.path == str(path) and caught.value.cure
    assert "Doe" not in str(caught.value) and "1.2." not in caught.value.problem


@pytest.mark.parametrize("frames", [5, 7])
def test_refuses_other_numbers_of_compressed_frames(tmp_path: pathlib.Path, frames: int) -> None:
    """More or fewer fragments than frames: some would be at the wrong place."""
    dataset = enhanced()
    dataset.compress(RLELossless, generate_instance_uid=False)
    encoded = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=6))
    dataset.PixelData = pydicom.encaps.encapsulate((encoded * 2)[:frames])
    with pytest.raises(DataError, match="cannot be decoded|number of frames"):
        readers.read(write(tmp_path / "a", [dataset]) / "03")
