"""Hostile and odd DICOM series, and files that pydicom can write."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import (
    EnhancedSRStorage,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
    RTStructureSetStorage,
)

from data_pipelines.volume import Volume
from tests.data.dicom_files import (
    OBLIQUE,
    SHAPE,
    SLICE_MM,
    ct_slice,
    enhanced,
    stored,
    write,
)
from tests.data.hostile import Kind, Maker, equals

_HU = stored().astype(np.int16) - 1024


_Series = list[pydicom.Dataset]


def series() -> _Series:
    """A good series."""
    return [ct_slice(index) for index in range(SHAPE[0])]


def _edited(edit: Callable[[_Series], Any]) -> Maker:
    def make(folder: pathlib.Path) -> pathlib.Path:
        slices = series()
        edit(slices)
        return write(folder, slices)

    return make


def _all(**fields: Any) -> Maker:
    return lambda folder: write(folder, [ct_slice(i, **fields) for i in range(SHAPE[0])])


def _third(**fields: Any) -> Maker:
    return _edited(lambda slices: slices.__setitem__(3, ct_slice(3, **fields)))


def _frames(**fields: Any) -> Maker:
    return lambda folder: write(folder, [enhanced(**fields)])


def _alone(kind: str, name: str = "file.dcm") -> Maker:
    """A file without pixels."""

    def make(folder: pathlib.Path) -> pathlib.Path:
        dataset = ct_slice(0, Rows=None, Columns=None, PixelData=None, SOPClassUID=kind)
        dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.UID(kind)
        dataset.save_as(folder / name, enforce_file_format=True)
        return folder

    return make


def _syntax(uid: str, encapsulate: bool = False) -> Maker:
    def edit(slices: _Series) -> None:
        for dataset in slices:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
            if encapsulate:
                dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
                dataset["PixelData"].VR = "OB"

    return _edited(edit)


def _compressed(slices: _Series) -> None:
    for dataset in slices:
        dataset.compress(RLELossless, generate_instance_uid=False)


def _phases(slices: _Series) -> None:
    slices += [ct_slice(i, InstanceNumber=200 + i) for i in range(SHAPE[0])]


def _displaced(slices: _Series) -> None:
    for index, dataset in enumerate(slices):
        dataset.ImagePositionPatient = [10, -20 + index**2, 30 + SLICE_MM * index]


def _uneven(slices: _Series) -> None:
    slices[3].ImagePositionPatient = [10, -20, 30 + 3.3 * SLICE_MM]


def _mixed(slices: _Series) -> None:
    slices += [ct_slice(i, SeriesInstanceUID="9.9", Rows=4, Columns=5) for i in range(3)]


def _padded(slices: _Series) -> None:
    for dataset in slices:
        pixels = np.frombuffer(dataset.PixelData, np.uint16).copy()
        pixels[:2] = 63536  # -2000 as signed
        dataset.PixelData, dataset.PixelPaddingValue = pixels.tobytes(), 63536


def _is_padded(volume: Volume) -> None:
    expected = _HU.copy().reshape(SHAPE[0], -1)
    expected[:, :2] = -1024
    equals(expected.reshape(SHAPE))(volume)


def _localizer(slices: _Series) -> None:
    slices.append(ct_slice(0, OBLIQUE, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))


def _thick(slices: _Series) -> None:
    del slices[1:]
    slices[0].SliceThickness = 5


KINDS = (
    Kind("a good series", _all(), equals(_HU)),
    Kind(
        "missing slice", _edited(lambda s: s.pop(2)), r"missing .*5\.00 mm between slices 1 and 2"
    ),
    Kind("duplicate slice", _edited(lambda s: s.append(ct_slice(2))), "2 slices of 7 share"),
    Kind("uneven slices", _edited(_uneven), "unevenly spaced"),
    Kind("displaced slices", _edited(_displaced), "slices are displaced sideways"),
    Kind(
        "two series",
        _edited(_mixed),
        "2 series in one folder: 1: 6 slices of 5x4; 2: 3 slices",
        prepared=True,
    ),
    Kind("sizes mixed", _third(Rows=4, Columns=5), "differs from the others in size"),
    Kind("modalities mixed", _third(Modality="MR"), "modality differs"),
    Kind("localizer", _edited(_localizer), r"localizer \(scout\)"),
    Kind("two phases", _edited(_phases), "several phases.* 12 slices at 6 positions"),
    Kind("MONOCHROME1 CT", _all(PhotometricInterpretation="MONOCHROME1"), equals(_HU)),
    Kind(
        "MONOCHROME1 MR",
        _all(PhotometricInterpretation="MONOCHROME1", Modality="MR"),
        "MONOCHROME1",
    ),
    Kind("padding value", _edited(_padded), _is_padded),
    Kind("no slope", _all(RescaleSlope=None), equals(_HU)),
    Kind("no intercept", _all(RescaleIntercept=None), "no linear rescale"),
    Kind("slope 0", _all(RescaleSlope=0), "RescaleSlope of 0"),
    Kind("slope 0.5 once", _all(RescaleSlope=0.5), equals(stored() * np.float32(0.5) - 1024)),
    Kind("no pixels", _third(PixelData=None), "no PixelData"),
    Kind("pixels cut short", _third(PixelData=bytes(10)), "has 10 bytes, the header says 40"),
    Kind("too many pixels", _third(PixelData=bytes(400)), "has 400 bytes, the header says 40"),
    Kind("huge Rows", _all(Rows=65535, Columns=65535), "claims 4294836225 pixels", bomb=True),
    Kind("no Rows", _all(Rows=0), "Rows or Columns is 0"),
    Kind("colour", _all(PhotometricInterpretation="RGB", SamplesPerPixel=3), "colour image"),
    Kind("12 bits allocated", _all(BitsAllocated=12, BitsStored=12, HighBit=11), "12 bits in 12"),
    Kind("no position", _third(ImagePositionPatient=None), "no ImagePositionPatient"),
    Kind("pixels of 0 mm", _all(PixelSpacing=[0.8, 0]), "not positive"),
    Kind("pixels of -1 mm", _all(PixelSpacing=[-1, 0.7]), "not positive"),
    Kind("slanted axes", _all(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]), "right angles"),
    Kind("no axes", _all(ImageOrientationPatient=[0] * 6), "not unit vectors"),
    Kind("video", _syntax("1.2.840.10008.1.2.4.100", True), "MPEG2 .* cannot be decoded"),
    Kind("no JPEG-LS inside", _syntax(JPEGLSLossless, True), "JPEG-LS"),
    Kind("RLE", _edited(_compressed), equals(_HU)),
    Kind("contours alone", _alone(RTStructureSetStorage), "no DICOM images in it"),
    Kind("report alone", _alone(EnhancedSRStorage), "no DICOM images in it"),
    Kind(
        "DICOMDIR alone",
        _alone(MediaStorageDirectoryStorage, "DICOMDIR"),
        "no DICOM images in it",
        found=False,
        passed_over={"without ending": 1},
    ),
    Kind(
        "one slice of a series",
        _edited(lambda s: s.__delitem__(slice(1, None))),
        "slice without a thickness",
    ),
    Kind("one thick slice", _edited(_thick), equals(_HU[:1])),
    Kind("enhanced", _frames(), equals(_HU)),
    Kind(
        "enhanced, 900 million frames",
        _frames(NumberOfFrames=900_000_000),
        "with 6 positions",
        bomb=True,
    ),
    Kind("enhanced, two phases", _frames(order=(0, 1, 2, 0, 1, 2)), "several phases"),
    Kind(
        "enhanced, huge", _frames(Rows=60000, Columns=60000), "claims 21600000000 pixels", bomb=True
    ),
    Kind("frames without places", _frames(PerFrameFunctionalGroupsSequence=None), "0 positions"),
)
