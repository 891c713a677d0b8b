"""Where the slices of a DICOM series lie: DICOM PS3.3 C.7.6.2.1.1, from LPS to RAS+ millimetres.

Only positions decide the order of the slices: instance numbers and file names are free text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pydicom
from etils import epath

from data_pipelines.errors import DataError

GEOMETRY_TAGS = (
    "Rows",
    "Columns",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "SpacingBetweenSlices",
    "SliceThickness",
    "NumberOfFrames",
)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_POSITION_MM = 0.01
"""Scanners write positions with two to six decimals."""
_EVEN = 0.02
"""Part of the slice distance by which a distance may differ from the others."""


@dataclasses.dataclass(frozen=True)
class SliceStack:
    """Files in the order of their slices, and the grid they make.

    Attributes:
      files: along the slice normal (row direction x column direction).
      shape: (slices, rows, columns).
      affine: (4, 4) float64, (slice, row, column, 1) -> RAS+ mm.
    """

    files: list[epath.Path]
    shape: tuple[int, int, int]
    affine: np.ndarray


def stack_slices(
    source: object, headers: Sequence[tuple[epath.Path, pydicom.Dataset]]
) -> SliceStack:
    """Sorts slices in space and proves that they make an even, rectangular grid.

    Args:
      source: the folder or file to name in errors.
      headers: each file with its `GEOMETRY_TAGS`.

    Raises:
      DataError: positions are missing; slices differ in size or direction; a slice is missing or
        there twice; or the stack is sheared (gantry tilt).
    """
    for path, header in headers:
        _check_complete(path, header)
    first = headers[0][1]
    for path, header in headers:
        _check_alike(path, header, first)
    orientation = np.array(first.ImageOrientationPatient, np.float64).reshape(2, 3)
    along_row, along_column = orientation / np.linalg.norm(orientation, axis=1, keepdims=True)
    if abs(along_row @ along_column) > 1e-3:
        raise DataError(source, "rows and columns are not at right angles", "export it again")
    normal = np.cross(along_row, along_column)
    positions = np.array([header.ImagePositionPatient for _, header in headers], np.float64)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    step = _slice_step(source, positions, normal, first)
    row_mm, column_mm = (float(value) for value in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([step, along_column * row_mm, along_row * column_mm], axis=1)
    affine[:3, 3] = positions[0]
    return SliceStack(
        files=[headers[i][0] for i in order],
        shape=(len(headers), int(first.Rows), int(first.Columns)),
        affine=_LPS_TO_RAS @ affine,
    )


def _check_complete(path: epath.Path, header: pydicom.Dataset) -> None:
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise DataError(
            path,
            "several slices in one file (enhanced or multi-frame DICOM), which is not supported",
            "convert the series with dcm2niix and read the NIfTI file",
        )
    for tag, length in (
        ("ImageOrientationPatient", 6),
        ("ImagePositionPatient", 3),
        ("PixelSpacing", 2),
    ):
        value = header.get(tag)
        if value is None or np.size(value) != length:
            raise DataError(
                path,
                f"no {tag}: the slice has no place in the patient",
                "leave out screenshots, reports and scout images, or export the series again",
            )
    if min(float(value) for value in header.PixelSpacing) <= 0:
        raise DataError(path, "a PixelSpacing that is not positive", "export the series again")


def _check_alike(path: epath.Path, header: pydicom.Dataset, first: pydicom.Dataset) -> None:
    same_size = (header.Rows, header.Columns) == (first.Rows, first.Columns)
    same = same_size and all(
        np.allclose(
            np.array(header[tag].value, np.float64),
            np.array(first[tag].value, np.float64),
            atol=1e-4,
        )
        for tag in ("ImageOrientationPatient", "PixelSpacing")
    )
    if not same:
        raise DataError(
            path,
            "the slice differs from the others in size, pixel spacing or direction",
            "remove scout images and other acquisitions from the series",
        )


def _slice_step(
    source: object, positions: np.ndarray, normal: np.ndarray, first: pydicom.Dataset
) -> np.ndarray:
    """The vector in mm from a slice to the next, after checking that it is always the same."""
    if len(positions) == 1:
        distance = float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 0)
        if distance <= 0:
            raise DataError(source, "a single slice without a thickness", "give the whole series")
        return normal * distance
    along = positions @ normal
    gaps = np.diff(along)
    typical = float(np.median(gaps))
    if gaps.min() < _POSITION_MM:
        raise DataError(
            source,
            f"{(gaps < _POSITION_MM).sum() + 1} slices of {len(positions)} share their position "
            "with another one",
            "remove duplicates; split several phases or echoes into folders of their own",
        )
    uneven = np.abs(gaps - typical) > _POSITION_MM + _EVEN * typical
    if uneven.any():
        at = int(uneven.argmax())
        raise DataError(
            source,
            f"slices are missing or unevenly spaced: {gaps[at]:.2f} mm between slices {at} and "
            f"{at + 1}, elsewhere {typical:.2f} mm",
            "export the complete series, or resample it evenly before",
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    drift = (step - normal * (step @ normal)) * (len(positions) - 1)
    if np.linalg.norm(drift) > 0.5 * float(min(first.PixelSpacing)):
        raise DataError(
            source,
            f"the slices are sheared by {np.linalg.norm(drift):.1f} mm (gantry tilt)",
            "straighten the series, for example with dcm2niix, and read the NIfTI file",
        )
    return normal * (step @ normal)
