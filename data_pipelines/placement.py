"""Placements: ways to choose the windows of crops in a volume."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.datasets.records import Record
from data_pipelines.windows import Window

if TYPE_CHECKING:
    from data_pipelines.datasets import RecordSource

Part = tuple[float, float]
WHOLE: Part = (0.0, 1.0)
_Ends = Sequence[tuple[int, int]]
"""First and past-the-last voxel along (D, H, W) of the part that crops are cut from."""


@dataclasses.dataclass(frozen=True, eq=False)
class Ground:
    """The record that a crop is placed in, and the part of it that crops are cut from.

    Attributes:
      record: see `datasets.records`.
      names: {label value: name} of its mask.
      part: part of the volume along D that crops are cut from, as in `Source`.
    """

    record: Record
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    part: Part = WHOLE

    @property
    def ends(self) -> _Ends:
        """Returns the first and past-the-last voxel along (D, H, W) that crops are cut from."""
        return _ends(self.record["image"].shape, self.part)


class Placement(abc.ABC):
    """A way to choose the window of a crop. Subclasses are frozen dataclasses."""

    @property
    def needs_mask(self) -> bool:
        """Returns whether the placement needs the record's mask."""
        return False

    def check(self, where: str, sources: Sequence[RecordSource]) -> None:  # noqa: B027
        """Checks that the data has the structures or points that the placement names.

        Args:
          where: place of the placement in the config, for errors.
          sources: the prepared datasets of the mixture; one of them must have them.

        Raises:
          ConfigError: no dataset has them.
        """

    @abc.abstractmethod
    def __call__(self, ground: Ground, size: Sequence[int], rng: np.random.Generator) -> Window:
        """Returns a window.

        Args:
          ground: the record, and the part of it that crops are cut from.
          size: wanted voxels of the window along (D, H, W).
          rng: makes every random choice.
        """


@dataclasses.dataclass(frozen=True)
class Uniform(Placement):
    """A placement of crops anywhere in the volume, all positions with equal probability.

    A volume that is smaller than the crop is at a random position inside the crop.
    """

    def __call__(self, ground: Ground, size: Sequence[int], rng: np.random.Generator) -> Window:
        """Returns a window; see `Placement`."""
        return place(ground.record["image"].shape, size, rng, ground.part)


@dataclasses.dataclass(frozen=True)
class Whole(Placement):
    """A placement that covers the whole volume, so that the crop is the resized volume.

    Each axis is scaled by its own factor, so the ratios of the spacings change.
    """

    def __call__(self, ground: Ground, size: Sequence[int], rng: np.random.Generator) -> Window:
        """Returns a window; see `Placement`."""
        ends = ground.ends
        return Window.at(ends, [high - low for low, high in ends], [low for low, _ in ends])


def place(
    shape: Sequence[int], size: Sequence[int], rng: np.random.Generator, part: Part = WHOLE
) -> Window:
    """Returns a window at a uniformly random position.

    Along an axis where the volume is smaller than the window, the volume is at a random position
    inside the window.

    Args:
      shape: voxels of the volume along (D, H, W).
      size: voxels of the window along (D, H, W).
      rng: chooses the position.
      part: part of the volume along D to place the window in; voxels outside of it are not used.
    """
    ends = _ends(shape, part)
    start = [anywhere(low, high, want, rng) for (low, high), want in zip(ends, size, strict=True)]
    return Window.at(ends, size, start)


def anywhere(low: int, high: int, want: int, rng: np.random.Generator) -> int:
    """Returns the first voxel of a window of `want` voxels at a random position along one axis."""
    spare = high - low - want
    offset = int(rng.integers(abs(spare) + 1))
    return low + offset if spare > 0 else low - offset


def _ends(shape: Sequence[int], part: Part) -> _Ends:
    low, high = (round(end * shape[0]) for end in part)
    return [(low, high), *((0, side) for side in shape[1:])]


@dataclasses.dataclass(frozen=True, eq=False)
class PlacedCropMasks:
    """Label maps of other crops of the same record and placement; see `captions.CropMasks`.

    Attributes:
      ground: the record, and the part of it that crops are cut from.
      size: voxels of a crop along (D, H, W).
      placement: placement of the crops.
    """

    ground: Ground
    size: tuple[int, ...]
    placement: Placement = Uniform()

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Returns the label map of a random crop; see `captions.CropMasks`."""
        return self.placement(self.ground, self.size, rng).of(self.ground.record["mask"], 0)

    def key(self) -> tuple[Any, ...]:
        """Returns a hashable key; see `captions.CropMasks`."""
        record, part = self.ground.record, self.ground.part
        return record["source"], record["study_id"], self.size, part, self.placement
