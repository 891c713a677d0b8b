"""The contract of a field: what a batch holds of the crop of a record."""

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

Kind = Literal["image", "mask", "points", "boxes", "slice", "slice_at"]


@dataclasses.dataclass(frozen=True)
class Spatial:
    """Tells how an array of a sample moves when the sample is flipped or turned.

    Positions are in voxels of the sample along (D, H, W): a voxel is addressed by its centre, so
    that a flip along an axis of n voxels moves position p to n - 1 - p.

    Attributes:
      kind: what the array holds:
        "image": intensities on the grid of the sample, such as (D, H, W, 1);
        "mask": labels or truth values on the grid of the sample, such as (D, H, W);
        "points": (..., 3) positions; NaN where there is none;
        "boxes": (..., 6) half-open boxes d0, h0, w0, d1, h1, w1 between faces of voxels, so that a
          flip moves a face f to n - f; NaN where there is none;
        "slice": intensities of one plane of the sample. Its rows and columns are the two axes of
          (D, H, W) that the plane keeps, in this order, resampled to any number of voxels;
        "slice_at": (2,) integers: the axis 0, 1, 2 that a slice is perpendicular to, and the
          position of the slice along it.
      axes: dimensions of the array, without that of the batch: D, H, W for "image" and "mask",
        rows and columns for "slice", () for the others.
      at: for "slice" the name of the array of kind "slice_at" that tells its plane.
    """

    kind: Kind
    axes: tuple[int, ...] = ()
    at: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """The crop of a record, as fields see it; voxels are decoded when they are first asked for.

    Attributes:
      record: see `datasets.records`.
      window: where the crop lies in the record.
      size: voxels along (D, H, W) that the crop is resampled to.
      mask_names: {label value: name} of the record's mask.
      label_names: names of the entries of the record's `labels`.
      caption: what is said of the sample; None for nothing.
      rng: makes the choices of training; None makes the same choices every time.
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
        """(D, H, W) voxels as stored: uint8 or int16; the volume's lowest value outside of it."""
        return cut(self.record["image"], self.window, self.size, self.record["low"])

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """(D, H, W) uint8 label map, by nearest neighbour; 0 outside of the volume."""
        patch = self.window.of(self.record["mask"], 0)
        step = self.step
        return nearest(patch, self.size, (step - 1) / 2, step)

    @property
    def step(self) -> np.ndarray:
        """(3,) voxels of the record per voxel of the sample."""
        return np.array(self.window.shape) / np.array(self.size)

    def positions(self, voxels: np.ndarray) -> np.ndarray:
        """Returns positions (..., 3) in voxels of the record in voxels of the sample."""
        return transform(np.linalg.inv(self.window.to_volume(self.size)), voxels)


class Field(abc.ABC):
    """A part of a batch; frozen dataclasses implement this and travel to worker processes."""

    @property
    def needs_image(self) -> bool:
        """Whether it looks at the record's voxels."""
        return False

    @property
    def needs_mask(self) -> bool:
        """Whether it looks at the record's mask."""
        return False

    @abc.abstractmethod
    def spec(self, name: str, size: Size) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes of the arrays of one sample; needs no data on disk.

        Args:
          name: of the field in `Data.fields`; a field that may occur twice names its arrays by it.
          size: voxels along (D, H, W) of a sample.
        """

    def spatial(self, name: str) -> dict[str, Spatial]:
        """Returns how arrays move with the sample; one that is not named stays as it is."""
        return {}

    def check(self, name: str, sources: Sequence[RecordSource]) -> None:  # noqa: B027
        """Reads what the field needs, so that what is missing is found before compilation.

        Args:
          name: see `spec`.
          sources: the prepared datasets of the mixture.

        Raises:
          ConfigError: no dataset has what the field asks for.
          DataError: a file is missing, or of another model.
        """

    @abc.abstractmethod
    def __call__(self, name: str, sample: Sample) -> dict[str, np.ndarray]:
        """Returns the arrays of one sample, as in `spec`.

        An array may be of a narrower dtype than its spec, which stacking widens.
        """
