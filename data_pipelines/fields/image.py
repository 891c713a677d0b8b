"""The voxels of a crop."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.fields.base import Field, Sample, Spatial
from data_pipelines.spatial import Size
from data_pipelines.specs import ArraySpec


@dataclasses.dataclass(frozen=True)
class Image(Field):
    """The voxels of the crop.

    A sample has
      image: (D, H, W, 1) int16;
      scale, offset: float32, `image * scale + offset` is the real value in `Data.units`;
      spacing: (3,) float32, mm between voxels along (D, H, W).
    """

    needs_image = True

    def spec(self, name: str, size: Size) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes; see `Field.spec`."""
        return {
            "image": ArraySpec((*size, 1), np.dtype(np.int16)),
            "scale": ArraySpec((), np.dtype(np.float32)),
            "offset": ArraySpec((), np.dtype(np.float32)),
            "spacing": ArraySpec((3,), np.dtype(np.float32)),
        }

    def spatial(self, name: str) -> dict[str, Spatial]:
        """Returns how the arrays move; see `Field.spatial`."""
        return {"image": Spatial("image", (-4, -3, -2))}

    def __call__(self, name: str, sample: Sample) -> dict[str, np.ndarray]:
        """Returns the arrays of one sample; see `Field.__call__`."""
        record = sample.record
        spacing = record["spacing"] * np.array(sample.window.shape) / np.array(sample.size)
        return {
            "image": sample.image[..., None],
            "scale": record["scale"],
            "offset": record["offset"],
            "spacing": spacing.astype(np.float32),
        }
