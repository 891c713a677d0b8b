"""Whole volumes as crops of one size, and back."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from jaxtyping import Bool, Float, Int

from m3djax.models.patches import Size


@dataclasses.dataclass(frozen=True, eq=False)
class Tiles:
    """Crops of one record that together cover it.

    The last crop along an axis is shifted back to end with the volume; where the volume is thinner
    than a crop, its lowest value (air) pads the end, as in training.

    Attributes:
      images: (T, d, h, w) int16 as stored.
      starts: (T, 3) voxel of the volume where a crop starts.
      inside: (T, d, h, w) False where a crop is padding.
      first: (T, d, h, w) True in the first crop that holds a voxel: the sum over crops counts
        every voxel of the volume once.
      shape: of the volume.
    """

    images: Int[np.ndarray, "t d h w"]
    starts: Int[np.ndarray, "t 3"]
    inside: Bool[np.ndarray, "t d h w"]
    first: Bool[np.ndarray, "t d h w"]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        """How many crops there are."""
        return len(self.images)

    def stitch(self, parts: Float[np.ndarray, "t d h w"]) -> np.ndarray:
        """One volume from values on the crops."""
        volume = np.zeros(self.shape, parts.dtype)
        for part, start, first in zip(parts, self.starts, self.first, strict=True):
            where = np.argwhere(first)
            volume[tuple((where + start).T)] = part[first]
        return volume


def cut(image: np.ndarray, size: Size, stride: Size | None = None) -> Tiles:
    """Cuts a volume into crops.

    Args:
      image: (D, H, W) as stored.
      size: voxels along (D, H, W) of a crop.
      stride: voxels from crop to crop; by default the size, so that crops do not overlap but for
        the last one along an axis.
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
