"""The class `Volume`: a 3D image with its affine and its mapping to the grid of its file.

Index space: a voxel is addressed by its centre (d, h, w), so it covers d-0.5 .. d+0.5. World space
is RAS+ millimetres (x to the Right, y to the Anterior, z to the Superior), as in NIfTI.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from data_pipelines.errors import DataError

Units = Literal["HU", "unit", "raw"]
NOT_LABELLED = 255
"""Mask value of voxels without annotation; 0 is background, and all other values are labels."""


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """An image and an optional label map on the same grid, with the geometry of grid and file.

    Attributes:
      array: (D, H, W), any real dtype; axes in the file's order until `Orientation` is applied.
      units: "HU", "unit" (0..1) or "raw" (arbitrary, such as MR). Units are never guessed.
      affine: (4, 4) float64, (d, h, w, 1) -> RAS+ mm; None if the source has none.
      spacing: mm along (D, H, W); computed from the affine if there is one.
      mask: (D, H, W) unsigned label map; 255 means not labelled.
      mask_names: label value -> name.
      patient_id: given by the caller, never read from the file's tags.
      study_id: given by the caller, like `patient_id`.
      source: path of the file that the array was read from.
      to_source: (4, 4) float64, index (d, h, w, 1) here -> index on the grid of the file.
      source_shape: shape of the file's grid, in the file's axis order.
      source_affine: affine of the file's grid.

    Raises:
      DataError: the array is not 3D, the affine is singular, or the mask is on another grid.
    """

    array: np.ndarray
    units: Units
    affine: np.ndarray | None = None
    spacing: tuple[float, float, float] | None = None
    mask: np.ndarray | None = None
    mask_names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    patient_id: str = ""
    study_id: str = ""
    source: str = ""
    to_source: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(4))
    source_shape: tuple[int, int, int] | None = None
    source_affine: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Checks the values and fills in those that follow from others."""
        self._check_array()
        self._check_mask()
        self._set("to_source", check_affine(self.to_source, self.source))
        if self.source_shape is None:
            self._set("source_shape", self.array.shape)
        if self.affine is not None:
            self._set("affine", check_affine(self.affine, self.source))
            if self.source_affine is None:
                self._set("source_affine", self.affine @ np.linalg.inv(self.to_source))
        self._check_spacing()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Returns (D, H, W)."""
        depth, height, width = self.array.shape
        return depth, height, width

    def regrid(self, array: np.ndarray, mask: np.ndarray | None, to_old: np.ndarray) -> Volume:
        """Returns the volume on a new grid, with composed `affine`, `spacing` and `to_source`.

        Args:
          array: (D', H', W') image, already on the new grid.
          mask: (D', H', W') mask on the new grid, or None.
          to_old: (4, 4) index on the new grid -> index on this grid; an axis permutation with
            flips, scales and shifts.
        """
        # Every column has one entry, so each new axis gets the spacing of exactly one old axis.
        spacing = None if self.spacing is None else self.spacing @ np.abs(to_old[:3, :3])
        return dataclasses.replace(
            self,
            array=array,
            mask=mask,
            affine=None if self.affine is None else self.affine @ to_old,
            spacing=None if spacing is None else tuple(spacing.tolist()),
            to_source=self.to_source @ to_old,
        )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_array(self) -> None:
        if self.units not in get_args(Units):
            raise DataError(
                self.source, f"units {self.units!r} are unknown", f"use one of {get_args(Units)}"
            )
        if self.array.ndim != 3 or 0 in self.array.shape:
            raise DataError(
                self.source,
                f"an array of shape {self.array.shape} is not a volume",
                "give one image of shape (D, H, W) without empty axes",
            )
        if self.array.dtype.kind not in "biuf":
            raise DataError(
                self.source,
                f"voxels of type {self.array.dtype} are not real numbers",
                "give integers or floats",
            )

    def _check_mask(self) -> None:
        if self.mask is None:
            return
        if self.mask.dtype.kind != "u":
            raise DataError(
                self.source,
                f"a mask of type {self.mask.dtype}",
                "give unsigned labels, for example mask.astype(np.uint8)",
            )
        if self.mask.shape != self.array.shape:
            raise DataError(
                self.source,
                f"a mask on another grid: {self.mask.shape} beside an image {self.array.shape}",
                "resample the mask onto the image (nearest neighbour) and read it again",
            )

    def _check_spacing(self) -> None:
        given = self.spacing
        if self.affine is not None:
            norms = np.linalg.norm(self.affine[:3, :3], axis=0)
            self._set("spacing", tuple(norms.tolist()))
            if given is not None and not np.allclose(given, norms, rtol=1e-3):
                raise DataError(
                    self.source,
                    f"the spacing {given} disagrees with the affine, which has {self.spacing}",
                    "give only one of them",
                )
        elif given is not None and not (
            len(given) == 3 and np.isfinite(given).all() and min(given) > 0
        ):
            raise DataError(self.source, f"a spacing of {given} mm", "give three positive numbers")


def check_affine(affine: np.ndarray, source: object = "") -> np.ndarray:
    """Returns the affine as float64 (4, 4).

    Raises:
      DataError: the affine is not (4, 4), is not finite, or maps the volume onto a plane.
    """
    affine = np.array(affine, np.float64)
    cure = "repair the header with the tool that wrote the file, or export the scan again"
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise DataError(source, "the affine is not a finite 4x4 matrix", cure)
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    # The determinant of the unit directions does not depend on the size of the voxels.
    if norms.min() <= 1e-9 or abs(np.linalg.det(affine[:3, :3] / norms)) < 1e-3:
        raise DataError(source, "the affine is singular (an axis has no extent of its own)", cure)
    if not np.allclose(affine[3], (0, 0, 0, 1)):
        raise DataError(source, "the last row of the affine is not (0, 0, 0, 1)", cure)
    return affine


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Applies a (4, 4) affine to points (..., 3), in float64."""
    return np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def corners(shape: tuple[int, ...]) -> np.ndarray:
    """Returns the eight corner voxels (8, 3) of a grid of this shape."""
    return np.stack(np.meshgrid(*((0, n - 1) for n in shape), indexing="ij"), -1).reshape(-1, 3)
