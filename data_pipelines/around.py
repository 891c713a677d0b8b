"""Placements of crops around voxels of structures or around candidate centres."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.captions import check_labels, matching
from data_pipelines.datasets import points
from data_pipelines.errors import ConfigError
from data_pipelines.lru import LruCache
from data_pipelines.placement import Ground, Placement, Uniform, anywhere
from data_pipelines.windows import Window

if TYPE_CHECKING:
    from data_pipelines.datasets import RecordSource

_VOXELS = 1024
"""Maximum number of voxels per label kept in memory as crop centres; drawn once per record."""


@dataclasses.dataclass(frozen=True)
class Foreground(Placement):
    """A placement of a share of the crops around voxels of structures, and of the others anywhere.

    First a label is drawn from the labels present in the record, all with equal probability, so
    that small structures are seen as often as large ones. Then one of its voxels is drawn. The crop
    is centred on that voxel and moved only as far as needed to stay inside the volume (as MONAI's
    RandCropByPosNegLabeld; nnU-Net oversamples foreground in the same way). To give each structure
    a share of its own, use several crops, each with a weight. In records without any of the
    structures, crops are placed anywhere.

    Attributes:
      labels: regular expressions for the names of the structures; () for all.
      share: share of the crops that are centred on a structure.
    """

    labels: tuple[str, ...] = ()
    share: float = 0.5

    needs_mask = True

    def __post_init__(self) -> None:
        """Raises ConfigError if values cannot work."""
        check_labels(self.labels, 1)
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share={self.share} must be a share, 0 to 1.")

    def check(self, where: str, sources: Sequence[RecordSource]) -> None:
        """Checks that every expression matches a structure of a mask; see `Placement.check`."""
        from data_pipelines.datasets import contents

        found = sorted(contents.structures(sources)) if self.labels else []
        for label in self.labels:
            if not any(re.fullmatch(label, name) for name in found):
                raise ConfigError(
                    f"{where}.labels: {label!r} matches no structure in the masks of "
                    f"{contents.shown(sources)}. Cure: choose from the structures that are there: "
                    f"{', '.join(found) or 'none'}."
                )

    def __call__(self, ground: Ground, size: Sequence[int], rng: np.random.Generator) -> Window:
        """Returns a window; see `Placement`."""
        if rng.random() >= self.share:
            return Uniform()(ground, size, rng)
        wanted = matching(tuple(sorted(ground.names.items())), self.labels)
        there = _voxels(ground)
        found = [_within(ground, there[value]) for value in wanted if value in there]
        found = [voxels for voxels in found if len(voxels)]
        if not found:
            return Uniform()(ground, size, rng)
        voxels = found[rng.integers(len(found))]
        return _around(ground, size, voxels[rng.integers(len(voxels))], rng)


@dataclasses.dataclass(frozen=True)
class Candidates(Placement):
    """A placement of crops around candidate centres, all with equal probability.

    The crop is centred on the candidate and moved only as far as needed to stay inside the volume.
    In records without candidates, crops are placed anywhere.

    Attributes:
      column: name of the column of points; see `datasets.points`.
    """

    column: str = "candidates"

    def check(self, where: str, sources: Sequence[RecordSource]) -> None:
        """Checks that a study has such points; see `Placement.check`."""
        from data_pipelines.datasets import contents

        contents.check_points(f"{where}.column", self.column, sources)

    def __call__(self, ground: Ground, size: Sequence[int], rng: np.random.Generator) -> Window:
        """Returns a window; see `Placement`."""
        centres = _within(ground, points.of_record(ground.record, self.column))
        if not len(centres):
            return Uniform()(ground, size, rng)
        return _around(ground, size, centres[rng.integers(len(centres))], rng)


def _around(
    ground: Ground, size: Sequence[int], centre: np.ndarray, rng: np.random.Generator
) -> Window:
    """Returns the window around a voxel, moved as far as needed to stay inside the volume.

    Along an axis where the volume is smaller than the window, the volume is at a random position
    inside the window.
    """
    start = []
    for (low, high), want, middle in zip(ground.ends, size, centre.tolist(), strict=True):
        first = round(middle - (want - 1) / 2)
        inside = min(max(first, low), high - want)
        start.append(inside if high - low >= want else anywhere(low, high, want, rng))
    return Window.at(ground.ends, size, start)


def _within(ground: Ground, places: np.ndarray) -> np.ndarray:
    """Returns the voxels (M, 3) of `places` (N, 3) inside the part that crops are cut from."""
    low, high = np.array(ground.ends).T
    return places[((places >= low - 0.5) & (places < high - 0.5)).all(axis=1)]


_cache = LruCache[dict[int, np.ndarray]](1 << 8)  # an entry takes 6 kB per label


def _voxels(ground: Ground) -> dict[int, np.ndarray]:
    """Returns {label value: its voxels (N, 3)}, N at most `_VOXELS`, cached for later calls."""
    record = ground.record
    if not record["mask_valid"]:
        return {}
    key = record["source"], record["study_id"], record["mask"].shape, record["affine"].tobytes()
    return _cache.get(key, lambda: _drawn(np.asarray(record["mask"])))


def _drawn(mask: np.ndarray) -> dict[int, np.ndarray]:
    """Draws at most `_VOXELS` voxels of each label of a mask, the same ones on every call."""
    places = np.flatnonzero(mask)
    values = mask.ravel()[places]
    order = np.argsort(values, kind="stable")  # one pass for all labels
    found = {}
    for value, group in zip(
        np.unique(values).tolist(),
        np.split(places[order], np.flatnonzero(np.diff(values[order])) + 1),
        strict=False,
    ):
        rng = np.random.default_rng(value)
        some = rng.choice(group, _VOXELS, replace=False) if len(group) > _VOXELS else group
        found[value] = np.stack(np.unravel_index(some, mask.shape), -1).astype(np.uint16)
    return found
