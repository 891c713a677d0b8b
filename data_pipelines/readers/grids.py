"""Compares two grids in one patient: whether they have the same voxels, in any order of axes."""

from __future__ import annotations

import dataclasses

import numpy as np
from nibabel import orientations

from data_pipelines.volume import corners, transform

TOLERANCE = 0.1
"""Tolerance for the distance of two grids, in voxels, because header fields are rounded."""


@dataclasses.dataclass(frozen=True)
class Turned:
    """Labels with axes in the order and direction of an image's axes.

    Attributes:
      labels: (D, H, W), a view of the original array.
      offset: (3,) index of the image's voxel that is nearest to the first voxel of the labels.
      apart: largest distance, in voxels along an axis, between the corners of the labels and the
        corresponding voxels of the image, after the offset.
    """

    labels: np.ndarray
    offset: np.ndarray
    apart: float


def turn(labels: np.ndarray, affine: np.ndarray, like: np.ndarray) -> Turned:
    """Reorients labels with the affine `affine` to the axes of an image with the affine `like`."""
    to_image = np.linalg.inv(like) @ affine
    change = orientations.io_orientation(to_image)
    to_image = to_image @ orientations.inv_ornt_aff(change, labels.shape)
    labels = orientations.apply_orientation(labels, change)
    here = corners(labels.shape)
    there = transform(to_image, here)
    offset = np.rint(there[0] - here[0])
    return Turned(labels, offset.astype(int), float(np.abs(there - here - offset).max()))
