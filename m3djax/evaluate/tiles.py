"""Conversion of whole volumes to crops of one size, and back."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from jaxtyping import Bool, Float, Int

from m3djax.models.patches import Size


@dataclasses.dataclass(frozen=True, eq=False)
class Tiles:
    """Crops that together cover one volume.

    The last crop along an axis is shifted back, so that it ends with the volume. A volume that is
    thinner than a crop is padded at its end with its lowest value (air), as in training.

    Attributes:
      images: (T, d, h, w) int16 as stored.
      starts: (T, 3) first voxel of each crop in the volume.
      inside: (T, d, h, w) False in padding.
      first: (T, d, h, w) True for voxels that are in no earlier crop, so that a sum over crops
        counts every voxel of the volume once.
      shape: shape of the volume.
    """

    images: Int[np.ndarray, "t d h w"]
    starts: Int[np.ndarray, "t 3"]
    inside: Bool[np.ndarray, "t d h w"]
    first: Bool[np.ndarray, "t d h w"]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        """Returns the number of crops."""
        return len(self.images)

    def stitch(self, parts: Float[np.ndarray, "t d h w"]) -> np.ndarray:
        """Joins values on the crops into one volume."""
        volume = np.zeros(self.shape, parts.dtype)
        for part, start, first in zip(parts, self.starts, self.first, strict=True):
            where = np.argwhere(first)
            volume[tuple((where + start).T)] = part[first]
        return volume


def cut(image: np.ndarray, size: Size, stride: Size | None = None) -> Tiles:
    """Cuts a volume into crops.

    Args:
      image: (D, H, W) as stored.
      size: size of a crop in voxels along (D, H, W).
      stride: voxels from crop to crop; None: the size, so that only the last crop along an axis
        overlaps another.
    """
    axes = [_starts(*sides) for sides in zip(image.shape, size, stride or size, strict=True)]
    starts = np.array(list(itertools.product(*axes)))
    padding = [(0, max(want - have, 0)) for have, want in zip(image.shape, size, strict=True)]
    padded = np.pad(image, padding, constant_values=image.min())
    exists = np.pad(np.ones(image.shape, bool), padding)
    left = exists.copy()
    images, inside, first = [], [], []
    for start in starts:
        window = tuple(slice(a, a + side) for a, side in zip(start, size, strict=True))
        images.append(padded[window])
        inside.append(exists[window])
        first.append(left[window].copy())
        left[window] = False
    return Tiles(np.stack(images), starts, np.stack(inside), np.stack(first), image.shape)


def _starts(have: int, want: int, stride: int) -> list[int]:
    if have <= want:
        return [0]
    return [*range(0, have - want, stride), have - want]
