"""Where crops lie in a volume: the ways to choose their windows."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.datasets.records import Record
from data_pipelines.windows import Window

Part = tuple[float, float]
WHOLE: Part = (0.0, 1.0)
_Ends = Sequence[tuple[int, int]]
"""First and past-the-last voxel along (D, H, W) of what may be looked at."""


@dataclasses.dataclass(frozen=True, eq=False)
class Ground:
    """A record that a crop is placed in.

    Attributes:
      record: see `datasets.records`.
      names: {label value: name} of its mask.
      part: share of the volume along D that crops are cut from, as in `Source`.
    """

    record: Record
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    part: Part = WHOLE

    @property
    def ends(self) -> _Ends:
        """First and past-the-last voxel along (D, H, W) that crops are cut from."""
        return _ends(self.record["image"].shape, self.part)


class Placement(abc.ABC):
    """Chooses where a crop lies; frozen dataclasses implement this."""

    @property
    def needs_mask(self) -> bool:
        """Whether it looks at the record's mask."""
        return False

    @abc.abstractmethod
    def __call__(self, ground: Ground, size: Sequence[int], rng: np.random.Generator) -> Window:
        """Returns a window.

        Args:
          ground: the record, and the part of it that counts.
          size: voxels along (D, H, W) that the window should have.
          rng: makes every choice.
        """


@dataclasses.dataclass(frozen=True)
class Uniform(Placement):
    """Places crops anywhere in the volume, each place as likely as any other.

    A volume that is smaller than the crop lies at a random place in it.
    """

    def __call__(self, ground: Ground, size: Sequence[int], rng: np.random.Generator) -> Window:
        """See `Placement`."""
        return place(ground.record["image"].shape, size, rng, ground.part)


@dataclasses.dataclass(frozen=True)
class Whole(Placement):
    """Takes all of the volume, whatever its size, so that the crop is the volume resized.

    Axes are scaled each by a factor of its own, so that spacings change their proportions.
    """

    def __call__(self, ground: Ground, size: Sequence[int], rng: np.random.Generator) -> Window:
        """See `Placement`."""
        ends = ground.ends
        return Window.at(ends, [high - low for low, high in ends], [low for low, _ in ends])


def place(
    shape: Sequence[int], size: Sequence[int], rng: np.random.Generator, part: Part = WHOLE
) -> Window:
    """Returns a window at a uniformly random place.

    Where the volume is smaller than the window, it lies at a random place in the window.

    Args:
      shape: voxels of the volume.
      size: voxels of the window.
      rng: chooses the place.
      part: share of the volume along D that counts; voxels beyond it are not looked at.
    """
    ends = _ends(shape, part)
    start = [anywhere(low, high, want, rng) for (low, high), want in zip(ends, size, strict=True)]
    return Window.at(ends, size, start)


def anywhere(low: int, high: int, want: int, rng: np.random.Generator) -> int:
    """Returns the first voxel of a window of `want` voxels at a random place along one axis."""
    spare = high - low - want
    offset = int(rng.integers(abs(spare) + 1))
    return low + offset if spare > 0 else low - offset


def _ends(shape: Sequence[int], part: Part) -> _Ends:
    low, high = (round(end * shape[0]) for end in part)
    return [(low, high), *((0, side) for side in shape[1:])]


@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """Label maps of crops that are placed in the same way as a crop; see `captions.Looks`.

    Attributes:
      ground: the record, and the part of it that counts.
      size: voxels of a crop.
      placement: how crops are placed.
    """

    ground: Ground
    size: tuple[int, ...]
    placement: Placement = Uniform()

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """See `captions.Looks`."""
        return self.placement(self.ground, self.size, rng).of(self.ground.record["mask"], 0)

    def key(self) -> tuple[Any, ...]:
        """See `captions.Looks`."""
        record, part = self.ground.record, self.ground.part
        return record["source"], record["study_id"], self.size, part, self.placement
