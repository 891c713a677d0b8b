"""Where crops lie in a volume: windows, and the ways to choose them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.datasets.codec import LazyArray
from data_pipelines.datasets.records import Record

Size = tuple[int, int, int]
Part = tuple[float, float]
WHOLE: Part = (0.0, 1.0)
_Ends = Sequence[tuple[int, int]]
"""First and past-the-last voxel along (D, H, W) of what may be looked at."""


@dataclasses.dataclass(frozen=True)
class Window:
    """Where a crop lies.

    Attributes:
      slices: of the volume, along (D, H, W).
      pads: voxels before and after them that lie outside of the volume.
    """

    slices: tuple[slice, ...]
    pads: tuple[tuple[int, int], ...]

    def of(self, volume: np.ndarray | LazyArray, fill: int) -> np.ndarray:
        """Returns the voxels of a volume in the window; `fill` outside of the volume."""
        window = volume[self.slices]
        if not any(map(any, self.pads)):
            return window
        return np.pad(window, self.pads, constant_values=fill)

    @property
    def start(self) -> tuple[int, ...]:
        """The voxel of the volume at the window's voxel 0; negative where it lies outside."""
        return tuple(
            along.start - before for along, (before, _) in zip(self.slices, self.pads, strict=True)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along (D, H, W), those outside of the volume included."""
        return tuple(
            along.stop - along.start + sum(pads)
            for along, pads in zip(self.slices, self.pads, strict=True)
        )

    @property
    def middle(self) -> tuple[int, ...]:
        """The voxel of the volume in the middle of the part of it that is in the window."""
        return tuple((along.start + along.stop) // 2 for along in self.slices)


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
    start = [_anywhere(low, high, want, rng) for (low, high), want in zip(ends, size, strict=True)]
    return window_at(ends, size, start)


def window_at(ends: _Ends, size: Sequence[int], start: Sequence[int]) -> Window:
    """Returns the window of `size` voxels that begins at `start`, with pads outside of `ends`."""
    slices, pads = [], []
    for (low, high), want, first in zip(ends, size, start, strict=True):
        slices.append(slice(max(first, low), min(first + want, high)))
        pads.append((max(low - first, 0), max(first + want - high, 0)))
    return Window(tuple(slices), tuple(pads))


def _anywhere(low: int, high: int, want: int, rng: np.random.Generator) -> int:
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
