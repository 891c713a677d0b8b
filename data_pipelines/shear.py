"""Finds sheared grids, such as those of a tilted gantry, and resamples them to rectangular ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from data_pipelines.volume import Volume, corners

_TOLERANCE = 0.5
"""Largest displacement of a voxel, in voxels, that counts as rounding in a header."""
_AIR = -1024.0
"""Value in HU of voxels outside the scan."""


def degrees(affine: np.ndarray) -> float:
    """Returns how far the axes of a grid are from right angles; 0 for a rectangular grid."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(directions.T @ directions - np.eye(3)).max()
    return float(np.degrees(np.arcsin(min(cosines, 1.0))))


def is_sheared(affine: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Returns whether a voxel is more than half a voxel off the nearest rectangular grid."""
    change = np.linalg.inv(_rectangular(affine)) @ affine[:3, :3] - np.eye(3)
    displaced = corners(shape) @ change.T
    return bool(np.abs(displaced).max() > _TOLERANCE)


def straighten(volume: Volume) -> Volume:
    """Resamples a volume with a sheared affine to a rectangular grid that covers it.

    The two axes that are closest to a right angle keep their direction. For a tilted gantry they
    are the rows and columns of the slices, so slices are shifted and stay as sharp as they are.
    The image is resampled linearly, the mask by nearest neighbour. Voxels outside the scan are
    -1024 HU, or the lowest value if the units are not HU; the mask is 0 there.

    Returns:
      The volume on its new grid; the same volume if it has no affine or is not sheared.
    """
    if volume.affine is None or not is_sheared(volume.affine, volume.shape):
        return volume
    frame = _rectangular(volume.affine)
    # Positions on the new grid, counted from the first voxel of the old one.
    places = corners(volume.shape) @ (np.linalg.inv(frame) @ volume.affine[:3, :3]).T
    low = np.floor(places.min(0) + 1e-3)
    shape = (np.ceil(places.max(0) - 1e-3) - low + 1).astype(int)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = frame, volume.affine[:3, 3] + frame @ low
    to_old = np.linalg.inv(volume.affine) @ affine

    air = _AIR if volume.units == "HU" else float(volume.array.min())
    image = resample(volume.array.astype(np.float32), to_old, shape, order=1, fill=air)
    mask = volume.mask
    return dataclasses.replace(
        volume,
        array=image,
        mask=None if mask is None else resample(mask, to_old, shape, order=0, fill=0),
        affine=affine,
        spacing=None,
        to_source=volume.to_source @ to_old,
    )


def resample(
    array: np.ndarray, to_old: np.ndarray, shape: Sequence[int], *, order: int, fill: float
) -> np.ndarray:
    """Resamples an array to a grid at any angle.

    Args:
      array: (D, H, W).
      to_old: (4, 4) index on the new grid -> index on the array's grid.
      shape: shape of the new grid.
      order: 0 nearest neighbour, 1 linear.
      fill: value outside the array.

    Returns:
      Array of `shape` in the array's dtype.
    """
    from scipy import ndimage  # few scans need it, and its import takes longer than a small scan

    matrix, offset = to_old[:3, :3], to_old[:3, 3]
    return ndimage.affine_transform(
        array, matrix, offset, tuple(shape), order=order, mode="grid-constant", cval=fill
    )


def _rectangular(affine: np.ndarray) -> np.ndarray:
    """Returns the axes (3, 3), in columns, of the rectangular grid nearest to an affine."""
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    unit = axes / lengths

    def rank(plane: tuple[int, int]) -> tuple[float, float]:
        first, second = plane
        # Two planes can be equally rectangular. Slices are then the one with the smaller pixels.
        return round(abs(unit[:, first] @ unit[:, second]), 4), lengths[first] * lengths[second]

    first, second = min(itertools.combinations(range(3), 2), key=rank)
    third = 3 - first - second
    across = unit[:, second] - unit[:, first] * (unit[:, first] @ unit[:, second])
    across /= np.linalg.norm(across)
    normal = np.cross(unit[:, first], across)
    out = np.empty((3, 3))
    out[:, first] = axes[:, first]
    out[:, second] = across * (axes[:, second] @ across)
    out[:, third] = normal * (axes[:, third] @ normal)
    return out
