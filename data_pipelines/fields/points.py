"""Points of a study that lie in a crop, such as centres of nodule candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.datasets import points
from data_pipelines.errors import ConfigError
from data_pipelines.fields.base import Field, Sample, Spatial
from data_pipelines.spatial import Size
from data_pipelines.specs import ArraySpec

if TYPE_CHECKING:
    from data_pipelines.datasets import RecordSource


@dataclasses.dataclass(frozen=True)
class Points(Field):
    """The points of a column of the dataset's table that lie in the crop.

    A sample has
      NAME: (count, 3) float32 positions along (D, H, W) in voxels of the sample, in the order of
        the table; rows after the last point are NaN.

    Attributes:
      column: name of the points; see `datasets.points`.
      count: maximum number of points in a sample; further points are left out.
    """

    column: str = "candidates"
    count: int = 16

    def __post_init__(self) -> None:
        """Raises ConfigError if `count` is less than 1."""
        if self.count < 1:
            raise ConfigError(f"count={self.count} must be at least 1.")

    def spec(self, name: str, size: Size) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes; see `Field.spec`."""
        return {name: ArraySpec((self.count, 3), np.dtype(np.float32))}

    def spatial(self, name: str) -> dict[str, Spatial]:
        """Returns how the arrays move; see `Field.spatial`."""
        return {name: Spatial("points")}

    def check(self, name: str, sources: Sequence[RecordSource]) -> None:
        """Checks that a study has such points; see `Field.check`."""
        from data_pipelines.datasets import contents

        contents.check_points(f"data.fields.{name}.column", self.column, sources)

    def __call__(self, name: str, sample: Sample) -> dict[str, np.ndarray]:
        """Returns the arrays of one sample; see `Field.__call__`."""
        there = sample.positions(points.of_record(sample.record, self.column))
        inside = ((there >= -0.5) & (there < np.array(sample.size) - 0.5)).all(axis=1)
        found = there[inside][: self.count]
        filled = np.full((self.count, 3), np.nan, np.float32)
        filled[: len(found)] = found
        return {name: filled}
