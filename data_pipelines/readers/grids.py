"""Two grids in one patient: whether they are of the same voxels, in whatever order of axes."""

from __future__ import annotations

import dataclasses

import numpy as np
from nibabel import orientations

from data_pipelines.volume import corners, transform

TOLERANCE = 0.1
"""Voxels that two grids may be apart: header fields are rounded."""


@dataclasses.dataclass(frozen=True)
class Turned:
    """Labels with their axes in the order and direction of an image's.

    Attributes:
      labels: (D, H, W) a view.
      offset: (3,) the image's whole voxel that the first one is nearest to.
      apart: voxels between the labels' corners and the image's voxels, after the offset.
    """

    labels: np.ndarray
    offset: np.ndarray
    apart: float


def turn(labels: np.ndarray, affine: np.ndarray, like: np.ndarray) -> Turned:
    """Turns labels on the grid `affine` to the axes of an image on the grid `like`."""
    to_image = np.linalg.inv(like) @ affine
    change = orientations.io_orientation(to_image)
    to_image = to_image @ orientations.inv_ornt_aff(change, labels.shape)
    labels = orientations.apply_orientation(labels, change)
    here = corners(labels.shape)
    there = transform(to_image, here)
    offset = np.rint(there[0] - here[0])
    return Turned(labels, offset.astype(int), float(np.abs(there - here - offset).max()))
