"""DICOM series: the real compressed sample, and errors for all kinds of bad folders."""

from __future__ import annotations

import pathlib
import shutil
import traceback
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from etils import epath
from pydicom.dataelem import RawDataElement
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    SegmentationStorage,
)

from data_pipelines import readers
from data_pipelines.errors import DataError
from tests.data.dicom_files import (
    AXIAL,
    COLUMN_MM,
    OBLIQUE,
    ROW_MM,
    SHAPE,
    SLICE_MM,
    ct_slice,
    enhanced,
    stored,
    write,
)
from tests.data.scans import affine_of, mask_of


@pytest.fixture
def series() -> list[pydicom.Dataset]:
    """A good series."""
    return [ct_slice(index) for index in range(SHAPE[0])]


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
    slices = [ct_slice(index, orientation) for index in range(SHAPE[0])]
    volume = readers.read(write(tmp_path / "a", slices))
    np.testing.assert_array_equal(volume.array, stored().astype(int) - 1024)
    assert volume.array.dtype == np.int16 and volume.units == "HU"
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    slice_, row, column = 4, 3, 2
    lps = np.array(slices[slice_].ImagePositionPatient, float)
    lps = lps + along_row * column * COLUMN_MM + along_column * row * ROW_MM
    ours = affine_of(volume) @ [slice_, row, column, 1]
    np.testing.assert_allclose(ours[:3], lps * (-1, -1, 1), atol=1e-5)
    assert affine_of(volume).dtype == np.float64


def _swapped(dataset: pydicom.Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()


def _as(syntax: pydicom.uid.UID) -> Callable[[pydicom.Dataset], None]:
    def encode(dataset: pydicom.Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax

    return encode


@pytest.mark.parametrize(
    "encode",
    [
        _as(ImplicitVRLittleEndian),
        _as(DeflatedExplicitVRLittleEndian),
        _swapped,
        lambda dataset: dataset.compress(RLELossless, generate_instance_uid=False),
    ],
    ids=["implicit", "deflated", "big endian", "RLE"],
)
def test_encodings(
    tmp_path: pathlib.Path,
    series: list[pydicom.Dataset],
    encode: Callable[[pydicom.Dataset], None],
) -> None:
    """However the file is written, the values are the same."""
    for dataset in series:
        encode(dataset)
    volume = readers.read(write(tmp_path / "a", series))
    np.testing.assert_array_equal(volume.array, stored().astype(int) - 1024)


def test_bits_that_are_not_stored_do_not_count(tmp_path: pathlib.Path) -> None:
    """Old scanners keep overlays above the 12 bits of a pixel."""
    layout: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
    slices = [
        ct_slice(i, PixelData=(p | 0x4000).tobytes(), **layout) for i, p in enumerate(stored())
    ]
    volume = readers.read(write(tmp_path / "a", slices))
    np.testing.assert_array_equal(volume.array, (stored() & 0xFFF).astype(int) - 1024)


def test_no_patient_tags(tmp_path: pathlib.Path, series: list[pydicom.Dataset]) -> None:
    """Names and ids stay in the file."""
    folder = write(tmp_path / "a", series)
    volume = readers.read(folder)
    assert volume.patient_id == volume.study_id == ""
    assert "Doe" not in repr(volume) and "4711" not in repr(volume)
    assert readers.read(folder, patient_id="p7").patient_id == "p7"


def test_one_file_stands_for_its_series(
    tmp_path: pathlib.Path, series: list[pydicom.Dataset]
) -> None:
    """Any file, also where the folder holds another series."""
    folder = write(tmp_path / "a", series)
    other = [ct_slice(index, SeriesInstanceUID="9.9") for index in range(3)]
    write(folder, other, prefix="other")
    assert readers.read(folder / "03").shape == SHAPE
    assert readers.read(folder / "other03").shape == (3, *SHAPE[1:])


def test_two_series_in_one_folder(tmp_path: pathlib.Path, series: list[pydicom.Dataset]) -> None:
    """They are told apart; without a choice the error lists them with their counts."""
    folder = write(tmp_path / "a", series)
    write(folder, [ct_slice(index, SeriesInstanceUID="9.9") for index in range(3)], prefix="other")
    (folder / "notes.txt").write_text("not an image")
    (folder / "sub").mkdir()
    shutil.move(folder / "03", folder / "sub" / "03")
    found = readers.find_series(folder)
    assert {uid: len(files) for uid, files in found.items()} == {"1.2.3": 6, "9.9": 3}
    with pytest.raises(DataError, match="2 series .*: 1: 6 slices of 5x4; 2: 3 slices") as caught:
        readers.read(folder)
    assert "series=" in caught.value.cure and "9.9" not in str(caught.value)
    assert readers.read(folder, series="1.2.3").shape == SHAPE
    assert readers.read(folder, series="2").shape == (3, *SHAPE[1:])
    assert readers.read_dicom_series(found["9.9"]).shape == (3, *SHAPE[1:])
    for number in ("0", "7"):
        with pytest.raises(DataError, match=f"no series '{number}'"):
            readers.read(folder, series=number)
    with pytest.raises(DataError, match="no series with the given SeriesInstanceUID") as caught:
        readers.read(folder, series="1.2.7")
    assert "1.2.7" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 100, 400])
def test_a_slice_that_is_cut_short_is_not_passed_over(
    tmp_path: pathlib.Path, series: list[pydicom.Dataset], size: int
) -> None:
    """At the end of the stack, no gap shows that it is missing."""
    folder = write(tmp_path / "a", series)
    last = sorted(folder.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:size])
    with pytest.raises(DataError, match="is empty or cut short") as caught:
        readers.read(folder)
    assert caught.value.path == str(last)


def test_reports_and_segmentations_are_no_series(
    tmp_path: pathlib.Path, series: list[pydicom.Dataset]
) -> None:
    """DICOM files without a scan do not hide the series beside them."""
    folder = write(tmp_path / "a", series)
    report = ct_slice(0, Rows=None, Columns=None, PixelData=None, SeriesInstanceUID="5.5")
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = BasicTextSRStorage
    segmentation = ct_slice(0, SeriesInstanceUID="5.6")
    segmentation.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    segmentation.SOPClassUID = SegmentationStorage
    write(folder, [report, segmentation], prefix="no")
    assert readers.read(folder).shape == SHAPE
    for file in ("no03", "no08"):
        with pytest.raises(DataError, match="without a scan"):
            readers.read(folder / file)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_slice_without_preamble_is_not_passed_over(
    tmp_path: pathlib.Path, series: list[pydicom.Dataset], implicit: bool
) -> None:
    """Without it, the series would lack a slice."""
    folder = write(tmp_path / "a", series)
    bare = pydicom.Dataset(series[-1])
    bare.save_as(folder / "28", implicit_vr=implicit, little_endian=True)
    with pytest.raises(DataError, match="without its preamble") as caught:
        readers.read(folder)
    assert caught.value.path == str(folder / "28")


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
    values = np.arange(20).reshape(SHAPE[1:]) + (-2005 if signed else 2995)
    dataset = ct_slice(
        0,
        PixelRepresentation=int(signed),
        RescaleIntercept=0,
        PixelData=values.astype(np.int16 if signed else np.uint16).tobytes(),
        SliceThickness=2.5,
    )
    kind = "SS" if signed else "US"
    dataset.add_new("PixelPaddingValue", kind, value)
    if limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", kind, limit)
    (plane,) = readers.read(write(tmp_path / "a", [dataset])).array
    np.testing.assert_array_equal(plane, np.where(np.isin(values, hit), -1024, values))


@pytest.mark.parametrize("value", [-2000, -2048, -3024])
def test_padding_that_no_tag_declares(tmp_path: pathlib.Path, value: int) -> None:
    """Scanners' usual padding is air; other low values are kept, to be judged elsewhere."""
    low = np.full(SHAPE[1:], value, np.int16)
    low[0, 0] = -1999
    fields: dict[str, Any] = {"PixelRepresentation": 1, "RescaleIntercept": 0, "SliceThickness": 1}
    dataset = ct_slice(0, PixelData=low.tobytes(), **fields)
    (plane,) = readers.read(write(tmp_path / "a", [dataset])).array
    assert plane[0, 0] == -1999 and (plane.ravel()[1:] == -1024).all()


def test_rescale_per_slice(tmp_path: pathlib.Path) -> None:
    """A slope that differs between slices, as in PET, is applied slice by slice."""
    slices = [
        ct_slice(i, Modality="PT", RescaleSlope=0.5 + i, RescaleIntercept=1) for i in range(6)
    ]
    volume = readers.read(write(tmp_path / "a", slices))
    expected = stored() * (0.5 + np.arange(6))[:, None, None] + 1
    np.testing.assert_allclose(volume.array, expected, rtol=1e-6)
    assert volume.units == "raw" and volume.array.dtype == np.float32


def test_values_beyond_int16(tmp_path: pathlib.Path) -> None:
    """16 bits unsigned do not wrap around."""
    data = np.full(SHAPE[1:], 65000, np.uint16).tobytes()
    slices = [ct_slice(0), ct_slice(1, PixelData=data)]
    volume = readers.read(write(tmp_path / "a", slices))
    assert volume.array.max() == 65000 - 1024
    np.testing.assert_array_equal(volume.array[0], stored()[0].astype(int) - 1024)


def test_monochrome1_ct_is_hu(tmp_path: pathlib.Path) -> None:
    """The polarity is about display: rescaled CT values are HU all the same."""
    slices = [ct_slice(i, PhotometricInterpretation="MONOCHROME1") for i in range(6)]
    volume = readers.read(write(tmp_path / "a", slices))
    np.testing.assert_array_equal(volume.array, stored().astype(int) - 1024)


def test_units(tmp_path: pathlib.Path, series: list[pydicom.Dataset]) -> None:
    """MR is raw; a caller cannot turn it into HU."""
    with pytest.raises(DataError, match="'HU' values, not 'raw'"):
        readers.read(write(tmp_path / "ct", series), units="raw")
    slices = [
        ct_slice(i, Modality="MR", RescaleSlope=None, RescaleIntercept=None) for i in range(6)
    ]
    folder = write(tmp_path / "mr", slices)
    volume = readers.read(folder)
    np.testing.assert_array_equal(volume.array, stored())
    assert volume.units == "raw"
    with pytest.raises(DataError, match="'raw' values, not 'HU'"):
        readers.read(folder, units="HU")


def test_ct_of_unspecified_units_takes_the_callers_word(tmp_path: pathlib.Path) -> None:
    """ITK writes RescaleType US, "unspecified", into CT: the file neither says HU nor denies it."""
    slices = [ct_slice(i, RescaleType="US") for i in range(6)]
    folder = write(tmp_path / "itk", slices)
    assert readers.read(folder).units == "raw"
    volume = readers.read(folder, units="HU")
    assert volume.units == "HU"
    np.testing.assert_array_equal(volume.array, stored().astype(int) - 1024)
    other = write(tmp_path / "od", [ct_slice(i, RescaleType="OD") for i in range(6)])
    with pytest.raises(DataError, match="'raw' values, not 'HU'"):
        readers.read(other, units="HU")


def _changed(index: int, **fields: Any) -> Callable[[list[pydicom.Dataset]], None]:
    def change(series: list[pydicom.Dataset]) -> None:
        series[index] = ct_slice(index, **fields)

    return change


def _everywhere(**fields: Any) -> Callable[[list[pydicom.Dataset]], None]:
    def change(series: list[pydicom.Dataset]) -> None:
        series[:] = [ct_slice(index, **fields) for index in range(len(series))]

    return change


def _turned(angle: float) -> list[float]:
    """Directions of rows and columns, turned in their plane by an angle in rad."""
    return [np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0]


@pytest.mark.parametrize("angle", [1e-4, 1e-3])
def test_directions_that_jitter(tmp_path: pathlib.Path, angle: float) -> None:
    """Less than half a pixel at the edge of a slice: the voxels are those written."""
    series = [
        ct_slice(index, ImageOrientationPatient=_turned(angle * (-1) ** index))
        for index in range(SHAPE[0])
    ]
    volume = readers.read(write(tmp_path / "jitter", series))
    np.testing.assert_array_equal(volume.array, stored().astype(int) - 1024)


def test_a_parametric_map_beside_a_series(tmp_path: pathlib.Path) -> None:
    """It has rows and columns, but is no scan; alone, it is no image either."""
    folder = write(tmp_path / "ct", [ct_slice(index) for index in range(SHAPE[0])])
    extra = ct_slice(0, SeriesInstanceUID="1.2.9")
    extra.SOPClassUID = extra.file_meta.MediaStorageSOPClassUID = pydicom.uid.ParametricMapStorage
    extra.save_as(folder / "map.dcm", enforce_file_format=True)
    assert readers.read(folder).shape == SHAPE
    (tmp_path / "alone").mkdir()
    extra.save_as(tmp_path / "alone" / "map.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match="no DICOM images in it"):
        readers.read(tmp_path / "alone")


def test_a_tilted_gantry_is_a_sheared_grid(tmp_path: pathlib.Path) -> None:
    """Each slice is 0.6 mm further to the back: no voxel moves, and the affine says where it is."""
    series = [ct_slice(index) for index in range(SHAPE[0])]
    straight = readers.read(write(tmp_path / "straight", series))
    for index, dataset in enumerate(series):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y + 0.6 * index, z]
    tilted = readers.read(write(tmp_path / "tilted", series))
    np.testing.assert_array_equal(tilted.array, straight.array)
    expected = affine_of(straight).copy()
    expected[1, 0] -= 0.6
    np.testing.assert_allclose(affine_of(tilted), expected, atol=1e-9)


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
        (lambda s: s.append(ct_slice(2)), "2 slices of 7 share their position"),
        (_changed(3, Rows=4, Columns=5), "differs from the others"),
        (_changed(3, PixelSpacing=[0.8, 0.8]), "differs from the others"),
        (_changed(0, ImageOrientationPatient=list(OBLIQUE)), r"direction, as a localizer"),
        (_changed(0, ImageOrientationPatient=_turned(0.03)), r"turned by 1\.72 degrees"),
        (_changed(0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), r"localizer \(scout\) image"),
        (_everywhere(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "a mosaic: many slices"),
        (_changed(3, Modality="MR"), "modality differs"),
        (_changed(3, ImagePositionPatient=None), "no ImagePositionPatient"),
        (_everywhere(ImageOrientationPatient=None), "no ImageOrientationPatient"),
        (lambda s: s.extend([ct_slice(i) for i in range(6)]), "12 slices at 6 positions"),
        (_changed(3, ImagePositionPatient=[15, -20, 37.5]), "displaced sideways by 5.0 mm"),
        (_everywhere(PixelSpacing=[0.8, 0]), "not positive"),
        (_everywhere(PixelSpacing=[-0.8, 0.7]), "not positive"),
        (_everywhere(ImageOrientationPatient=[0, 0, 0, 0, 1, 0]), "not unit vectors"),
        (_everywhere(ImageOrientationPatient=[1, 0, 0]), "6 finite numbers"),
        (_everywhere(RescaleSlope=0), "RescaleSlope of 0"),
        (_everywhere(Rows=0), "Rows or Columns is 0"),
        (_everywhere(Rows=60000, Columns=60000), "claims 3600000000 pixels"),
        (_everywhere(BitsAllocated=8, BitsStored=8, HighBit=7), "has 40 bytes, the header says 20"),
        (_everywhere(BitsAllocated=32), "has 40 bytes, the header says 80"),
        (_everywhere(BitsAllocated=12, BitsStored=12, HighBit=11), "12 bits in 12"),
        (_everywhere(BitsStored=12), "HighBit"),
        (_everywhere(PixelRepresentation=None), "no PixelRepresentation"),
        (_changed(3, PixelData=None), "no PixelData"),
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
    folder = write(tmp_path / "a", series)
    with pytest.raises(DataError, match=problem) as caught:
        readers.read(folder)
    assert caught.value.path.startswith(str(folder)) and caught.value.cure
    assert "Doe" not in str(caught.value) and "4711" not in str(caught.value)


@pytest.mark.parametrize("text", ["Doe", "nan", "inf", "1e300", "1\\\\2\\\\3\\\\4", "\xe4\x01"])
@pytest.mark.parametrize(
    "tag",
    ["PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope"],
)
def test_refuses_text_for_numbers(
    tmp_path: pathlib.Path,
    series: list[pydicom.Dataset],
    recwarn: pytest.WarningsRecorder,
    caplog: pytest.LogCaptureFixture,
    tag: str,
    text: str,
) -> None:
    """The tag is named; neither the error nor what was raised or logged on the way quotes it."""
    number = pydicom.datadict.tag_for_keyword(tag)
    assert number is not None
    data = text.encode("latin-1")
    series[3][number] = RawDataElement(
        pydicom.tag.Tag(number), "DS", len(data), data, 0, False, True
    )
    folder = write(tmp_path / "a", series)
    recwarn.clear()
    caplog.clear()
    with pytest.raises(DataError, match=tag) as caught:
        readers.read(folder)
    assert "Doe" not in "".join(traceback.format_exception(caught.value))
    assert not recwarn.list and not caplog.records


@pytest.mark.parametrize("length", [200, 400, 600, 800])
def test_truncated(tmp_path: pathlib.Path, length: int) -> None:
    """Wherever a single file ends, it is an error."""
    dataset = enhanced()
    path = write(tmp_path / "a", [dataset]) / "03"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError):
        readers.read(path)


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
