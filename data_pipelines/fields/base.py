"""The base class of a field, and the crop from which fields make the arrays of a batch."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from data_pipelines.caption import Caption
from data_pipelines.datasets.records import Record
from data_pipelines.resample import nearest
from data_pipelines.spatial import Size
from data_pipelines.specs import ArraySpec
from data_pipelines.volume import transform
from data_pipelines.windows import Window, cut

if TYPE_CHECKING:
    from data_pipelines.datasets import RecordSource

SpatialKind = Literal["image", "mask", "points", "boxes", "slice", "slice_at"]


@dataclasses.dataclass(frozen=True)
class Spatial:
    """A rule for an array of a sample: how it moves when the sample is flipped or turned.

    Positions are in voxels of the sample along (D, H, W). A position addresses the centre of a
    voxel, so that a flip along an axis of n voxels moves position p to n - 1 - p.

    Attributes:
      kind: what the array holds:
        "image": intensities on the grid of the sample, such as (D, H, W, 1);
        "mask": labels or truth values on the grid of the sample, such as (D, H, W);
        "points": (..., 3) positions; NaN where there is none;
        "boxes": (..., 6) half-open boxes d0, h0, w0, d1, h1, w1 between faces of voxels. A flip
          moves a face f to n - f. NaN where there is none;
        "slice": intensities of one plane of the sample. Rows and columns are the two axes of
          (D, H, W) that lie in the plane, in this order, resampled to any number of voxels;
        "slice_at": (2,) integers: the axis (0, 1 or 2) perpendicular to a slice, and the position
          of the slice along that axis.
      axes: indices of the array's spatial dimensions, without the batch dimension: D, H, W for
        "image" and "mask", rows and columns for "slice", () for the others.
      at: for "slice", the name of the array of kind "slice_at" that gives its plane.
    """

    kind: SpatialKind
    axes: tuple[int, ...] = ()
    at: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """The crop of a record from which fields make arrays. Voxels are decoded at their first use.

    Attributes:
      record: see `datasets.records`.
      window: where the crop lies in the record.
      size: voxels along (D, H, W) that the crop is resampled to.
      mask_names: {label value: name} of the record's mask.
      label_names: names of the entries of the record's `labels`.
      caption: the text about the sample; None if there is none.
      rng: makes the random choices of training; with None the choices are always the same.
    """

    record: Record
    window: Window
    size: Size
    mask_names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    label_names: Sequence[str] = ()
    caption: Caption | None = None
    rng: np.random.Generator | None = None

    @functools.cached_property
    def image(self) -> np.ndarray:
        """Returns (D, H, W) voxels as stored, uint8 or int16.

        Voxels outside the volume have its lowest value.
        """
        return cut(self.record["image"], self.window, self.size, self.record["low"])

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """Returns the (D, H, W) uint8 label map, by nearest neighbour; 0 outside the volume."""
        patch = self.window.of(self.record["mask"], 0)
        step = self.step
        return nearest(patch, self.size, (step - 1) / 2, step)

    @property
    def step(self) -> np.ndarray:
        """Returns (3,) voxels of the record per voxel of the sample."""
        return np.array(self.window.shape) / np.array(self.size)

    def positions(self, voxels: np.ndarray) -> np.ndarray:
        """Converts positions (..., 3) from voxels of the record to voxels of the sample."""
        return transform(np.linalg.inv(self.window.to_volume(self.size)), voxels)


class Field(abc.ABC):
    """A part of a batch.

    Subclasses are frozen dataclasses, because they are sent to worker processes.
    """

    @property
    def needs_image(self) -> bool:
        """Returns True if the field reads the record's voxels."""
        return False

    @property
    def needs_mask(self) -> bool:
        """Returns True if the field reads the record's mask."""
        return False

    @abc.abstractmethod
    def spec(self, name: str, size: Size) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes of the arrays of one sample, without data on disk.

        Args:
          name: name of the field in `Data.fields`. If a kind of field may occur twice in
            `Data.fields`, the names of its arrays begin with it.
          size: voxels along (D, H, W) of a sample.
        """

    def spatial(self, name: str) -> dict[str, Spatial]:
        """Returns how arrays move with the sample. Arrays that are not named do not change."""
        return {}

    def check(self, name: str, sources: Sequence[RecordSource]) -> None:  # noqa: B027
        """Reads the files that the field needs, so that errors appear before compilation.

        Args:
          name: see `spec`.
          sources: the prepared datasets of the mixture.

        Raises:
          ConfigError: no dataset has the data that the field needs.
          DataError: a file is missing, or belongs to another model.
        """

    def check_fields(self, name: str, fields: Mapping[str, Field]) -> None:  # noqa: B027
        """Checks that the other fields of the data fit this field.

        Args:
          name: see `spec`.
          fields: all fields of the data by name.

        Raises:
          ConfigError: they do not fit.
        """

    @abc.abstractmethod
    def __call__(self, name: str, sample: Sample) -> dict[str, np.ndarray]:
        """Returns the arrays of one sample, as in `spec`.

        The dtype of an array may be narrower than in its spec: stacking widens it.
        """
