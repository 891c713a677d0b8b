"""Windows: positions of crops in a volume, and the function that cuts them out."""

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
    """The position of a crop in a volume.

    Attributes:
      slices: slices of the volume along (D, H, W).
      pads: voxels of the crop before and after the slices, outside of the volume.
    """

    slices: tuple[slice, ...]
    pads: tuple[tuple[int, int], ...]

    @classmethod
    def around(
        cls, shape: Sequence[int], size: Sequence[int], middle: Float[np.ndarray, "3"]
    ) -> Window:
        """Returns the window inside the volume whose middle is nearest to a point.

        Along axes where the volume is shorter than the window, it is centred in the window.

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
        """Returns the window that starts at a voxel.

        Args:
          ends: first and past-the-last voxel of the volume along (D, H, W); voxels of the window
            beyond them are padded.
          size: voxels of the window along (D, H, W).
          start: voxel of the volume at the window's voxel 0; may be negative.
        """
        slices, pads = [], []
        for (low, high), want, first in zip(ends, size, start, strict=True):
            slices.append(slice(max(first, low), min(first + want, high)))
            pads.append((max(low - first, 0), max(first + want - high, 0)))
        return cls(tuple(slices), tuple(pads))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Window:
        """Returns the window that covers exactly the volume."""
        return cls(tuple(slice(0, side) for side in shape), ((0, 0),) * len(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the voxels of the window along (D, H, W), including those outside the volume."""
        return tuple(
            before + along.stop - along.start + after
            for along, (before, after) in zip(self.slices, self.pads, strict=True)
        )

    @property
    def middle(self) -> tuple[int, ...]:
        """Returns the middle voxel of the part of the volume that is in the window."""
        return tuple((along.start + along.stop) // 2 for along in self.slices)

    def of(self, volume: np.ndarray | LazyArray, fill: int) -> np.ndarray:
        """Returns the voxels of a volume in the window, with `fill` outside of the volume."""
        window = volume[self.slices]
        if not any(map(any, self.pads)):
            return window
        return np.pad(window, self.pads, constant_values=fill)

    def to_volume(self, size: Size) -> Float[np.ndarray, "4 4"]:
        """Returns the matrix from indices of the result of `cut` to indices of the volume."""
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
      window: the window to cut out.
      size: voxels along (D, H, W) of the result.
      fill: stored value for voxels outside of the volume, such as that of air.

    Returns:
      Array of shape `size`, in the volume's dtype if nothing was resampled, else int16.
    """
    patch = window.of(volume, fill)
    if patch.shape == size:
        return patch
    return np.rint(resize(patch, size)).astype(np.int16)


def resize(image: np.ndarray, size: Size) -> np.ndarray:
    """Resamples a whole image to `size` voxels, linearly and with anti-aliasing, in float32."""
    step = np.array(image.shape) / np.array(size)
    return linear(image, size, (step - 1) / 2, step, anti_alias=True)
