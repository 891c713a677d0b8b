"""One slice of a crop."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np

from data_pipelines.errors import ConfigError
from data_pipelines.fields.base import Field, Sample, Spatial
from data_pipelines.spatial import Size
from data_pipelines.specs import ArraySpec
from data_pipelines.windows import resize

Axis = Literal["D", "H", "W"]


@dataclasses.dataclass(frozen=True)
class Slice(Field):
    """A slice of the sample, resampled to a fixed size. Use it together with `Image`.

    A sample has
      NAME: (h, w, 1) int16, in the stored units of `Image`: the scale and offset of `Image` apply.
        Rows and columns are the two axes of (D, H, W) that lie in the slice, in this order;
      NAME_at: (2,) int32, the axis perpendicular to the slice (0 for D, 1 for H, 2 for W) and the
        position of the slice along this axis, in voxels of the sample.

    In training the axis and the position are random. Otherwise the slice is in the middle of the
    first axis.

    Attributes:
      axes: possible axes perpendicular to the slice.
      size: voxels along the rows and the columns.
    """

    axes: tuple[Axis, ...] = ("D",)
    size: tuple[int, int] = (224, 224)

    needs_image = True

    def __post_init__(self) -> None:
        """Raises ConfigError if there are no axes or the size is not positive."""
        if not self.axes or min(self.size) < 1:
            raise ConfigError("axes must not be empty, and size must be positive.")

    def spec(self, name: str, size: Size) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes; see `Field.spec`."""
        return {
            name: ArraySpec((*self.size, 1), np.dtype(np.int16)),
            f"{name}_at": ArraySpec((2,), np.dtype(np.int32)),
        }

    def spatial(self, name: str) -> dict[str, Spatial]:
        """Returns how the arrays move; see `Field.spatial`."""
        return {name: Spatial("slice", (0, 1), f"{name}_at"), f"{name}_at": Spatial("slice_at")}

    def __call__(self, name: str, sample: Sample) -> dict[str, np.ndarray]:
        """Returns the arrays of one sample; see `Field.__call__`."""
        axis, index = self._drawn(sample)
        plane = np.take(sample.image, index, axis)
        if plane.shape != self.size:
            plane = np.rint(resize(plane[None], (1, *self.size))[0]).astype(np.int16)
        return {name: plane[..., None], f"{name}_at": np.array([axis, index], np.int32)}

    def _drawn(self, sample: Sample) -> tuple[int, int]:
        numbers = [get_args(Axis).index(axis) for axis in self.axes]
        if sample.rng is None:
            return numbers[0], sample.size[numbers[0]] // 2
        axis = numbers[sample.rng.integers(len(numbers))]
        return axis, int(sample.rng.integers(sample.size[axis]))
