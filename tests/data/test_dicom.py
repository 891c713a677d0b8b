"""DICOM series: the real compressed sample, and every way in which a folder can be wrong."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from etils import epath
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
)

from data_pipelines import readers
from data_pipelines.errors import DataError
from tests.data.scans import affine_of, mask_of

SHAPE = (6, 5, 4)  # slices, rows, columns
ROW_MM, COLUMN_MM, SLICE_MM = 0.8, 0.7, 2.5
AXIAL = (1.0, 0, 0, 0, 1, 0)
OBLIQUE = (0.96, 0.28, 0, -0.28 * 0.8, 0.96 * 0.8, 0.6)


def _stored() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, SHAPE, np.uint16)


def _slice(index: int, orientation: tuple[float, ...] = AXIAL, **fields: Any) -> pydicom.Dataset:
    """One uncompressed CT slice; `fields` set or, with None, remove a tag."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"1.2.{index + 1}")
    normal = np.cross(orientation[:3], orientation[3:])
    position = np.array([10.0, -20, 30]) + normal * SLICE_MM * index
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"1.2.{index + 1}",
        "Modality": "CT",
        "PatientName": "Doe^Jane",
        "PatientID": "4711",
        "SeriesInstanceUID": "1.2.3",
        "InstanceNumber": 100 - index,  # opposite to space: must not matter
        "ImageOrientationPatient": list(orientation),
        "ImagePositionPatient": [round(float(x), 6) for x in position],
        "PixelSpacing": [ROW_MM, COLUMN_MM],
        "Rows": SHAPE[1],
        "Columns": SHAPE[2],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": _stored()[index].tobytes(),
    }
    for name, value in (values | fields).items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def _write(folder: pathlib.Path, slices: list[pydicom.Dataset], prefix: str = "") -> pathlib.Path:
    """Writes slices under names that sort unlike they lie."""
    folder.mkdir(exist_ok=True)
    for index, dataset in enumerate(slices):
        dataset.save_as(folder / f"{prefix}{(index * 5 + 3) % 31:02d}", enforce_file_format=True)
    return folder


@pytest.fixture
def series() -> list[pydicom.Dataset]:
    """A good series."""
    return [_slice(index) for index in range(SHAPE[0])]


def test_sample_series_and_its_mask(sample_scans: epath.Path) -> None:
    """The compressed series has the grid of its NIfTI mask, and the organs the right HU."""
    mask = sample_scans / "example_seg_dicom.nii.gz"
    volume = readers.read(sample_scans / "example_ct_dicom", mask)
    assert volume.shape == (20, 512, 512) and volume.units == "HU"
    assert volume.array.dtype == np.int16
    assert volume.spacing == pytest.approx((2, 0.9765625, 0.9765625))
    image: Any = nib.load(mask)
    for label in (1, 5):  # spleen and liver enhance to 50..150 HU; a flip would break that
        values = volume.array[mask_of(volume) == label]
        assert 50 < np.median(values) < 150 and values.std() < 40
        ours = nib.affines.apply_affine(
            affine_of(volume), np.argwhere(mask_of(volume) == label).mean(0)
        )
        theirs = np.argwhere(np.asarray(image.dataobj) == label).mean(0)
        np.testing.assert_allclose(ours, nib.affines.apply_affine(image.affine, theirs), atol=1e-3)


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_values_order_and_affine(tmp_path: pathlib.Path, orientation: tuple[float, ...]) -> None:
    """Slices are sorted in space, HU are exact, and each voxel lies where PS3.3 puts it."""
    slices = [_slice(index, orientation) for index in range(SHAPE[0])]
    volume = readers.read(_write(tmp_path / "a", slices))
    np.testing.assert_array_equal(volume.array, _stored().astype(int) - 1024)
    assert volume.array.dtype == np.int16 and volume.units == "HU"
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    slice_, row, column = 4, 3, 2
    lps = np.array(slices[slice_].ImagePositionPatient, float)
    lps = lps + along_row * column * COLUMN_MM + along_column * row * ROW_MM
    ours = affine_of(volume) @ [slice_, row, column, 1]
    np.testing.assert_allclose(ours[:3], lps * (-1, -1, 1), atol=1e-5)
    assert affine_of(volume).dtype == np.float64


def test_no_patient_tags(tmp_path: pathlib.Path, series: list[pydicom.Dataset]) -> None:
    """Names and ids stay in the file."""
    folder = _write(tmp_path / "a", series)
    volume = readers.read(folder)
    assert volume.patient_id == volume.study_id == ""
    assert "Doe" not in repr(volume) and "4711" not in repr(volume)
    assert readers.read(folder, patient_id="p7").patient_id == "p7"


def test_one_file_stands_for_its_series(
    tmp_path: pathlib.Path, series: list[pydicom.Dataset]
) -> None:
    """Any file, also where the folder holds another series."""
    folder = _write(tmp_path / "a", series)
    other = [_slice(index, SeriesInstanceUID="9.9") for index in range(3)]
    _write(folder, other, prefix="other")
    assert readers.read(folder / "03").shape == SHAPE
    assert readers.read(folder / "other03").shape == (3, *SHAPE[1:])


def test_two_series_in_one_folder(tmp_path: pathlib.Path, series: list[pydicom.Dataset]) -> None:
    """They are told apart; without a choice the error lists them with their counts."""
    folder = _write(tmp_path / "a", series)
    _write(folder, [_slice(index, SeriesInstanceUID="9.9") for index in range(3)], prefix="other")
    (folder / "notes.txt").write_text("not an image")
    (folder / "sub").mkdir()
    shutil.move(folder / "03", folder / "sub" / "03")
    found = readers.find_series(folder)
    assert {uid: len(files) for uid, files in found.items()} == {"1.2.3": 6, "9.9": 3}
    with pytest.raises(DataError, match=r"1\.2\.3 \(6 files\), 9\.9 \(3 files\)") as caught:
        readers.read(folder)
    assert "series=" in caught.value.cure
    assert readers.read(folder, series="1.2.3").shape == SHAPE
    assert readers.read_dicom_series(found["9.9"]).shape == (3, *SHAPE[1:])
    with pytest.raises(DataError, match="no series '7'"):
        readers.read(folder, series="7")


@pytest.mark.parametrize("size", [0, 100, 400])
def test_a_slice_that_is_cut_short_is_not_passed_over(
    tmp_path: pathlib.Path, series: list[pydicom.Dataset], size: int
) -> None:
    """At the end of the stack nothing else would show that it is missing."""
    folder = _write(tmp_path / "a", series)
    last = sorted(folder.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:size])
    with pytest.raises(DataError, match="is empty or cut short") as caught:
        readers.read(folder)
    assert caught.value.path == str(last)


def test_a_report_is_no_series(tmp_path: pathlib.Path, series: list[pydicom.Dataset]) -> None:
    """A DICOM file without an image does not hide the series beside it."""
    folder = _write(tmp_path / "a", series)
    report = _slice(0, Rows=None, Columns=None, PixelData=None, SeriesInstanceUID="5.5")
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = BasicTextSRStorage
    _write(folder, [report], prefix="report")
    assert readers.read(folder).shape == SHAPE


@pytest.mark.parametrize(
    ("signed", "value", "limit", "hit"),
    [
        (False, 3000, None, [3000]),
        (False, 3000, 3002, [3000, 3001, 3002]),
        (True, -2000, None, [-2000]),
        (True, -1998, -2000, [-2000, -1999, -1998]),
    ],
)
def test_padding_becomes_air(
    tmp_path: pathlib.Path, signed: bool, value: int, limit: int | None, hit: list[int]
) -> None:
    """Voxels outside of the field of view are -1024 HU, whatever the scanner wrote."""
    stored = np.arange(20).reshape(SHAPE[1:]) + (-2005 if signed else 2995)
    dataset = _slice(
        0,
        PixelRepresentation=int(signed),
        RescaleIntercept=0,
        PixelData=stored.astype(np.int16 if signed else np.uint16).tobytes(),
        SliceThickness=2.5,
    )
    kind = "SS" if signed else "US"
    dataset.add_new("PixelPaddingValue", kind, value)
    if limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", kind, limit)
    (plane,) = readers.read(_write(tmp_path / "a", [dataset])).array
    np.testing.assert_array_equal(plane, np.where(np.isin(stored, hit), -1024, stored))


def test_rescale_per_slice(tmp_path: pathlib.Path) -> None:
    """A slope that differs between slices, as in PET, is applied slice by slice."""
    slices = [_slice(i, Modality="PT", RescaleSlope=0.5 + i, RescaleIntercept=1) for i in range(6)]
    volume = readers.read(_write(tmp_path / "a", slices))
    expected = _stored() * (0.5 + np.arange(6))[:, None, None] + 1
    np.testing.assert_allclose(volume.array, expected, rtol=1e-6)
    assert volume.units == "raw" and volume.array.dtype == np.float32


def test_values_beyond_int16(tmp_path: pathlib.Path) -> None:
    """16 bits unsigned do not wrap around."""
    data = np.full(SHAPE[1:], 65000, np.uint16).tobytes()
    slices = [_slice(0), _slice(1, PixelData=data)]
    volume = readers.read(_write(tmp_path / "a", slices))
    assert volume.array.max() == 65000 - 1024
    np.testing.assert_array_equal(volume.array[0], _stored()[0].astype(int) - 1024)


def test_monochrome1_ct_is_hu(tmp_path: pathlib.Path) -> None:
    """The polarity is about display: rescaled CT values are HU all the same."""
    slices = [_slice(i, PhotometricInterpretation="MONOCHROME1") for i in range(6)]
    volume = readers.read(_write(tmp_path / "a", slices))
    np.testing.assert_array_equal(volume.array, _stored().astype(int) - 1024)


def test_units(tmp_path: pathlib.Path, series: list[pydicom.Dataset]) -> None:
    """MR is raw; a caller cannot turn it into HU."""
    with pytest.raises(DataError, match="'HU' values, not 'raw'"):
        readers.read(_write(tmp_path / "ct", series), units="raw")
    slices = [_slice(i, Modality="MR", RescaleSlope=None, RescaleIntercept=None) for i in range(6)]
    folder = _write(tmp_path / "mr", slices)
    volume = readers.read(folder)
    np.testing.assert_array_equal(volume.array, _stored())
    assert volume.units == "raw"
    with pytest.raises(DataError, match="'raw' values, not 'HU'"):
        readers.read(folder, units="HU")


def _changed(index: int, **fields: Any) -> Callable[[list[pydicom.Dataset]], None]:
    def change(series: list[pydicom.Dataset]) -> None:
        series[index] = _slice(index, **fields)

    return change


def _everywhere(**fields: Any) -> Callable[[list[pydicom.Dataset]], None]:
    def change(series: list[pydicom.Dataset]) -> None:
        series[:] = [_slice(index, **fields) for index in range(len(series))]

    return change


def _tilted(series: list[pydicom.Dataset]) -> None:
    for index, dataset in enumerate(series):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y + 0.6 * index, z]


def _another_syntax(uid: str) -> Callable[[list[pydicom.Dataset]], None]:
    def change(series: list[pydicom.Dataset]) -> None:
        for dataset in series:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
            dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
            dataset["PixelData"].VR = "OB"

    return change


@pytest.mark.parametrize(
    ("break_", "problem"),
    [
        (lambda s: s.pop(2), r"missing or unevenly spaced: 5\.00 mm between slices 1 and 2"),
        (_changed(3, ImagePositionPatient=[10, -20, 30 + 3.3 * SLICE_MM]), "unevenly spaced"),
        (lambda s: s.append(_slice(2)), "2 slices of 7 share their position"),
        (_tilted, "gantry tilt"),
        (_changed(3, Rows=4, Columns=5), "differs from the others"),
        (_changed(3, PixelSpacing=[0.8, 0.8]), "differs from the others"),
        (_changed(3, ImageOrientationPatient=list(OBLIQUE)), "differs from the others"),
        (_changed(3, Modality="MR"), "modality differs"),
        (_changed(3, ImagePositionPatient=None), "no ImagePositionPatient"),
        (_everywhere(ImageOrientationPatient=None), "no ImageOrientationPatient"),
        (_everywhere(PixelSpacing=[0.8, 0]), "not positive"),
        (_everywhere(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]), "right angles"),
        (_everywhere(PhotometricInterpretation="RGB", SamplesPerPixel=3), "colour image"),
        (_everywhere(PhotometricInterpretation="MONOCHROME1", Modality="MR"), "MONOCHROME1"),
        (_everywhere(RescaleIntercept=None, RescaleSlope=None), "no linear rescale"),
        (_everywhere(NumberOfFrames=3), "several slices in one file"),
        (_changed(3, PixelData=b"\0" * 10), "cannot be decoded as Explicit VR Little Endian"),
        (_another_syntax(JPEGLSLossless), "cannot be decoded as JPEG-LS Lossless"),
        (_another_syntax(MPEG2MPML), "transfer syntax MPEG2 .* cannot be decoded"),
        (lambda s: s.__delitem__(slice(1, None)), "single slice without a thickness"),
    ],
)
def test_refuses(
    tmp_path: pathlib.Path,
    series: list[pydicom.Dataset],
    break_: Callable[[list[pydicom.Dataset]], Any],
    problem: str,
) -> None:
    """Each error names file or folder, the problem and a cure, and no patient."""
    break_(series)
    folder = _write(tmp_path / "a", series)
    with pytest.raises(DataError, match=problem) as caught:
        readers.read(folder)
    assert caught.value.path.startswith(str(folder)) and caught.value.cure
    assert "Doe" not in str(caught.value) and "4711" not in str(caught.value)


def test_names_the_missing_codec(sample_scans: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the codec the error says what to install."""
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"pylibjpeg": ("pylibjpeg-openjpeg>=2.0",)})
    with pytest.raises(DataError, match=r"no codec .* JPEG 2000") as caught:
        readers.read(sample_scans / "example_ct_dicom")
    assert "pylibjpeg-openjpeg" in caught.value.cure


def test_nothing_to_read(tmp_path: pathlib.Path) -> None:
    """An empty folder, a folder of other things, a missing one, an empty list."""
    with pytest.raises(DataError, match="no DICOM images"):
        readers.read(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b").write_bytes(b"")
    with pytest.raises(DataError, match="no DICOM images"):
        readers.find_series(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        readers.read(tmp_path / "missing")
    with pytest.raises(DataError, match="without files"):
        readers.read_dicom_series([])
