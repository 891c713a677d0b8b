"""Windows of a volume: where a crop lies, and the one way to cut it out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from data_pipelines.datasets.codec import LazyArray
from data_pipelines.resample import linear
from data_pipelines.spatial import Size


@dataclasses.dataclass(frozen=True)
class Window:
    """Where a crop lies.

    Attributes:
      slices: of the volume, along (D, H, W).
      pads: voxels before and after them that lie outside of the volume.
    """

    slices: tuple[slice, ...]
    pads: tuple[tuple[int, int], ...]

    @classmethod
    def around(
        cls, shape: Sequence[int], size: Sequence[int], middle: Float[np.ndarray, "3"]
    ) -> Window:
        """Returns the window whose middle is nearest to a point, without leaving the volume.

        Along axes that are shorter than the window, the volume lies in the middle of the window.

        Args:
          shape: voxels of the volume along (D, H, W).
          size: voxels of the window.
          middle: the point, in voxels of the volume.
        """
        spare = np.array(shape) - np.array(size)
        start = np.round(middle - (np.array(size) - 1) / 2).astype(int)
        start = np.where(spare > 0, start.clip(0, spare.clip(0)), -((-spare) // 2))
        return cls.at([(0, side) for side in shape], size, start.tolist())

    @classmethod
    def at(
        cls, ends: Sequence[tuple[int, int]], size: Sequence[int], start: Sequence[int]
    ) -> Window:
        """Returns the window that begins at a voxel.

        Args:
          ends: first and past-the-last voxel of the volume along (D, H, W); voxels of the window
            beyond them are padded.
          size: voxels of the window.
          start: the voxel of the volume at the window's voxel 0.
        """
        slices, pads = [], []
        for (low, high), want, first in zip(ends, size, start, strict=True):
            slices.append(slice(max(first, low), min(first + want, high)))
            pads.append((max(low - first, 0), max(first + want - high, 0)))
        return cls(tuple(slices), tuple(pads))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Window:
        """Returns the window that is the volume itself."""
        return cls(tuple(slice(0, side) for side in shape), ((0, 0),) * len(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of the window along (D, H, W), those outside of the volume included."""
        return tuple(
            before + along.stop - along.start + after
            for along, (before, after) in zip(self.slices, self.pads, strict=True)
        )

    @property
    def middle(self) -> tuple[int, ...]:
        """The voxel of the volume in the middle of what of it is in the window."""
        return tuple((along.start + along.stop) // 2 for along in self.slices)

    def of(self, volume: np.ndarray | LazyArray, fill: int) -> np.ndarray:
        """Returns the voxels of a volume in the window, with `fill` outside of the volume."""
        window = volume[self.slices]
        if not any(map(any, self.pads)):
            return window
        return np.pad(window, self.pads, constant_values=fill)

    def to_volume(self, size: Size) -> Float[np.ndarray, "4 4"]:
        """Returns the matrix from indices of what `cut` returns to indices of the volume."""
        start = [
            along.start - before for along, (before, _) in zip(self.slices, self.pads, strict=True)
        ]
        step = np.array(self.shape) / np.array(size)
        matrix = np.diag([*step, 1.0])
        matrix[:3, 3] = start + (step - 1) / 2
        return matrix


def cut(volume: np.ndarray | LazyArray, window: Window, size: Size, fill: int) -> np.ndarray:
    """Cuts a window out of a volume and resamples it to the size of a network's input.

    Args:
      volume: (D, H, W) stored integers.
      window: which part of it.
      size: voxels along (D, H, W) of the result.
      fill: stored value outside of the volume, such as that of air.

    Returns:
      The volume's dtype if nothing was resampled, int16 else.
    """
    patch = window.of(volume, fill)
    if patch.shape == size:
        return patch
    return np.rint(resize(patch, size)).astype(np.int16)


def resize(image: np.ndarray, size: Size) -> np.ndarray:
    """Resamples a whole image to `size` voxels, linear and without aliasing, in float32."""
    step = np.array(image.shape) / np.array(size)
    return linear(image, size, (step - 1) / 2, step, anti_alias=True)
