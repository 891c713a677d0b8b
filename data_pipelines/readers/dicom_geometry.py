"""The geometry of the slices of a DICOM series, from LPS (PS3.3 C.7.6.2.1.1) to RAS+ mm.

Only positions determine the order of the slices, because instance numbers and file names are free
text.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.readers.dicom_frames import DicomSlice

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_POSITION_MM = 0.01
"""Tolerance for positions in mm: scanners write them with two to six decimals."""
_LOCALIZER = 0.1
"""Difference of direction cosines from which a slice is another acquisition: about 6 degrees."""
_EVEN = 0.02
"""Tolerance for the distance between slices, as a fraction of the median distance."""


@dataclasses.dataclass(frozen=True)
class SliceStack:
    """Slices in their spatial order, and the affine of their grid.

    Attributes:
      slices: slices sorted along the slice normal (row direction x column direction).
      affine: (4, 4) float64, (slice, row, column, 1) -> RAS+ mm.
    """

    slices: list[DicomSlice]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Returns (slices, rows, columns)."""
        return len(self.slices), *self.slices[0].shape


def stack_slices(source: object, slices: Sequence[DicomSlice]) -> SliceStack:
    """Sorts slices in space and checks that they form an even grid.

    The grid of a tilted gantry is sheared: each slice is displaced by the same vector.

    Args:
      source: the folder or file to name in errors.
      slices: one or more slices, in any order.

    Raises:
      DataError: slices differ in size or direction; a slice is missing or a duplicate; or slices
        are displaced irregularly.
    """
    typical = _typical(slices)
    for slice_ in slices:
        _check_alike(slice_, typical)
    orientation = np.array(typical.orientation).reshape(2, 3)
    along_row, along_column = orientation / np.linalg.norm(orientation, axis=1, keepdims=True)
    normal = np.cross(along_row, along_column)
    positions = np.array([slice_.position for slice_ in slices])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    row_mm, column_mm = typical.pixel_mm
    step = _slice_step(source, positions, normal, typical)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([step, along_column * row_mm, along_row * column_mm], axis=1)
    affine[:3, 3] = positions[0]
    return SliceStack([slices[i] for i in order], LPS_TO_RAS @ affine)


def _typical(slices: Sequence[DicomSlice]) -> DicomSlice:
    """Returns a slice of the most frequent kind, so that errors name the slices that differ."""

    def kind(slice_: DicomSlice) -> tuple[object, ...]:
        return slice_.shape, tuple(np.round(slice_.orientation, 1)), slice_.units

    ((most, _),) = collections.Counter(map(kind, slices)).most_common(1)
    return next(slice_ for slice_ in slices if kind(slice_) == most)


def _check_alike(slice_: DicomSlice, typical: DicomSlice) -> None:
    if slice_.units != typical.units:
        raise DataError(
            slice_.path, "the slice's modality differs from the others'", "split the series"
        )
    cure = "remove scout images and other acquisitions from the series"
    turned = np.abs(np.subtract(slice_.orientation, typical.orientation)).max()
    if turned > _LOCALIZER:
        problem = "the slice differs from the others in direction, as a localizer (scout) does"
        raise DataError(slice_.path, problem, cure)
    if turned > min(0.5 / max(typical.shape), 0.01):  # the edges are half a pixel elsewhere
        problem = f"the slice is turned by {np.degrees(turned):.2f} degrees against the others"
        raise DataError(slice_.path, problem, "register the slices, or leave this series out")
    same_pixels = np.allclose(slice_.pixel_mm, typical.pixel_mm, atol=1e-4)
    if slice_.shape != typical.shape or not same_pixels:
        problem = "the slice differs from the others in size or pixel spacing"
        raise DataError(slice_.path, problem, cure)


def _slice_step(
    source: object, positions: np.ndarray, normal: np.ndarray, typical: DicomSlice
) -> np.ndarray:
    """Returns the vector between slices, (3,) in mm, after checking that it is constant."""
    if len(positions) == 1:
        if typical.thickness <= 0:
            raise DataError(source, "a single slice without a thickness", "give the whole series")
        return normal * typical.thickness
    along = positions @ normal
    gaps = np.diff(along)
    _check_distinct(source, gaps)
    usual = float(np.median(gaps))
    uneven = np.abs(gaps - usual) > _POSITION_MM + _EVEN * usual
    if uneven.any():
        at = int(uneven.argmax())
        raise DataError(
            source,
            f"slices are missing or unevenly spaced: {gaps[at]:.2f} mm between slices {at} and "
            f"{at + 1}, elsewhere {usual:.2f} mm",
            "export the complete series, or resample it evenly before",
        )
    step = normal * (along[-1] - along[0]) / len(gaps)
    pixel = min(typical.pixel_mm)
    if _sideways(positions - positions[0], normal) <= 0.5 * pixel:
        return step
    step = (positions[-1] - positions[0]) / len(gaps)
    even = positions[0] + np.arange(len(positions))[:, None] * step
    drift = _sideways(positions - even, normal)
    if drift > 0.5 * pixel:
        raise DataError(
            source,
            f"slices are displaced sideways by {drift:.1f} mm from an even row",
            "split the series where slices jump, or export it again",
        )
    return step


def _sideways(vectors: np.ndarray, normal: np.ndarray) -> float:
    """Returns the greatest length of vectors (n, 3) within the plane of the slices, in mm."""
    within = vectors - (vectors @ normal)[:, None] * normal
    return float(np.linalg.norm(within, axis=1).max())


def _check_distinct(source: object, gaps: np.ndarray) -> None:
    """Raises DataError if several slices have the same position."""
    count, shared = len(gaps) + 1, int((gaps < _POSITION_MM).sum())
    places = count - shared
    if not shared:
        return
    if count == places * (count // places):
        raise DataError(
            source,
            f"several phases, echoes or reconstructions: {count} slices at {places} positions",
            "split them into series of their own, for example with dcm2niix, and choose one",
        )
    raise DataError(
        source,
        f"{shared + 1} slices of {count} share their position with another one",
        "remove duplicates; split several phases or echoes into folders of their own",
    )
