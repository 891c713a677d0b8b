"""Reads the slices of a DICOM file: the slice of a classic file, or all frames of an enhanced file.

Enhanced multi-frame CT and MR files store the plane of every frame in functional groups (PS3.3
C.7.6.16), either shared by all frames or for each frame. Files converted from a classic series do
the same.
The groups of a frame are merged into a header like that of a single slice, and read as such.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pydicom
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers.dicom_header import EXPORT, items, numbers, text, whole
from data_pipelines.volume import Units

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_MACROS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
)
SLICE_TAGS = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImageType",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "SpacingBetweenSlices",
    "SliceThickness",
    "Modality",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    _SHARED,
    _PER_FRAME,
)
"""Tags that `slices_of` needs in a header."""


@dataclasses.dataclass(frozen=True)
class DicomSlice:
    """A slice of a series: its file, its plane in the patient, and its rescale to values.

    Attributes:
      path: the file.
      frame: index of the frame in the file, from 0.
      shape: (rows, columns).
      position: centre of the first voxel, LPS mm.
      orientation: directions along a row and along a column, LPS; not normalised.
      pixel_mm: distance between rows and between columns, mm.
      thickness: mm to the next slice according to the header; 0 if the header does not state it.
      units: units of the rescaled values.
      slope: value = slope * stored + intercept.
      intercept: see `slope`.
    """

    path: epath.Path
    frame: int
    shape: tuple[int, int]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_mm: tuple[float, ...]
    thickness: float
    units: Units
    slope: float
    intercept: float


def slices_of(
    path: epath.Path, header: pydicom.Dataset, told: Units | None = None
) -> list[DicomSlice]:
    """Returns the slices of a file, in the file's order.

    Args:
      path: the file.
      header: tags of the file.
      told: units given by the caller. They are used only if the file leaves the units open: for a
        CT whose RescaleType is "US", unspecified (PS3.3 C.11.1.1.2), as ITK writes it.

    Raises:
      DataError: the file is a scout image or a mosaic, has frames without a position in the
        patient, or has an unusable number.
    """
    if "LOCALIZER" in text(header, "ImageType"):
        raise DataError(
            path,
            "a localizer (scout) image, not a slice of the volume",
            "leave it out of the series",
        )
    if "MOSAIC" in text(header, "ImageType"):
        raise DataError(
            path,
            "a mosaic: many slices side by side in one image, as Siemens stores fMRI and diffusion",
            "convert the series with dcm2niix and read one volume of the NIfTI file",
        )
    frames = whole(path, header, "NumberOfFrames", 1) or 1
    groups = items(path, header, _PER_FRAME)
    if not groups and frames == 1:
        return [_slice(path, 0, header, told)]
    if len(groups) != frames:
        raise DataError(
            path,
            f"several slices in one file ({frames} frames) with {len(groups)} positions: "
            "ultrasound, secondary captures and old multi-frame files have none",
            "convert the original series with dcm2niix and read the NIfTI file",
        )
    shared = (*items(path, header, _SHARED), pydicom.Dataset())[0]
    flat = (_flat(path, header, shared, group) for group in groups)
    return [_slice(path, i, frame, told) for i, frame in enumerate(flat)]


def _flat(
    path: epath.Path, header: pydicom.Dataset, shared: pydicom.Dataset, group: pydicom.Dataset
) -> pydicom.Dataset:
    """Returns the header of one frame in the form of a single-slice file's header."""
    flat = pydicom.Dataset()
    flat.update(header)
    for macro in _MACROS:
        for item in (items(path, group, macro) or items(path, shared, macro))[:1]:
            flat.update(item)
    return flat


def _slice(path: epath.Path, frame: int, header: pydicom.Dataset, told: Units | None) -> DicomSlice:
    pixel_mm = _place(path, header, "PixelSpacing", 2)
    if min(pixel_mm) <= 0:
        raise DataError(path, "a PixelSpacing that is not positive", EXPORT)
    shape = whole(path, header, "Rows"), whole(path, header, "Columns")
    if 0 in shape:
        raise DataError(path, "Rows or Columns is 0: an image without pixels", EXPORT)
    units = _units(header, told)
    slope, intercept = _rescale(path, header, units)
    gap = numbers(path, header, "SpacingBetweenSlices")
    thickness = gap or numbers(path, header, "SliceThickness") or (0.0,)
    return DicomSlice(
        path=path,
        frame=frame,
        shape=shape,
        position=_place(path, header, "ImagePositionPatient", 3),
        orientation=_orientation(path, header),
        pixel_mm=pixel_mm,
        thickness=thickness[0],
        units=units,
        slope=slope,
        intercept=intercept,
    )


def _place(path: epath.Path, header: pydicom.Dataset, tag: str, count: int) -> tuple[float, ...]:
    found = numbers(path, header, tag, count)
    if found is None:
        raise DataError(
            path,
            f"no {tag}: the slice has no position in the patient",
            "leave out screenshots, reports and scout images, or export the series again",
        )
    return found


def _orientation(path: epath.Path, header: pydicom.Dataset) -> tuple[float, ...]:
    found = _place(path, header, "ImageOrientationPatient", 6)
    along_row, along_column = np.array(found).reshape(2, 3)
    lengths = np.linalg.norm([along_row, along_column], axis=1)
    if (np.abs(lengths - 1) > 0.05).any():
        raise DataError(path, "directions of rows and columns that are not unit vectors", EXPORT)
    if abs(along_row @ along_column) > 1e-3:
        raise DataError(path, "rows and columns are not at right angles", EXPORT)
    return found


def _units(header: pydicom.Dataset, told: Units | None) -> Units:
    kind = text(header, "RescaleType")
    hounsfield = kind in ("", "HU") or (kind == "US" and told == "HU")
    return "HU" if text(header, "Modality") == "CT" and hounsfield else "raw"


def _rescale(path: epath.Path, header: pydicom.Dataset, units: Units) -> tuple[float, float]:
    slope = numbers(path, header, "RescaleSlope")
    intercept = numbers(path, header, "RescaleIntercept")
    if "ModalityLUTSequence" in header or (units == "HU" and intercept is None):
        raise DataError(
            path, "no linear rescale from stored values to HU", "export the original CT series"
        )
    if slope == (0,):
        raise DataError(path, "a RescaleSlope of 0, which makes all voxels equal", EXPORT)
    return (slope or (1.0,))[0], (intercept or (0.0,))[0]
