"""Placements of crops around something: voxels of structures, or candidate centres."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.captions import check_labels, chosen
from data_pipelines.datasets import points
from data_pipelines.errors import ConfigError
from data_pipelines.placement import Ground, Placement, Uniform, anywhere
from data_pipelines.windows import Window

_VOXELS = 1024
"""Voxels of each label that are kept in memory to place crops around; drawn once per record."""


@dataclasses.dataclass(frozen=True)
class Foreground(Placement):
    """Places a share of the crops around voxels of structures, and the others anywhere.

    A label is drawn from those that the record shows, each as likely as the others, so that small
    structures are seen as often as large ones; then one of its voxels, which becomes the middle of
    the crop as far as the volume reaches (MONAI: RandCropByPosNegLabeld; nnU-Net oversamples
    foreground in the same way). Several crops with a weight each give structures shares of their
    own. Records that show none of the structures are cut anywhere.

    Attributes:
      labels: regular expressions of the names of the structures; () for all.
      share: share of the crops that lie around one.
    """

    labels: tuple[str, ...] = ()
    share: float = 0.5

    needs_mask = True

    def __post_init__(self) -> None:
        """Raises ConfigError if values cannot work."""
        check_labels(self.labels, 1)
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share={self.share} must be a share, 0 to 1.")

    def __call__(self, ground: Ground, size: Sequence[int], rng: np.random.Generator) -> Window:
        """See `Placement`.

        Raises:
          ConfigError: an expression matches no label of the dataset.
        """
        if rng.random() >= self.share:
            return Uniform()(ground, size, rng)
        wanted = chosen(tuple(sorted(ground.names.items())), self.labels)
        there = _voxels(ground)
        found = [_within(ground, there[value]) for value in wanted if value in there]
        found = [voxels for voxels in found if len(voxels)]
        if not found:
            return Uniform()(ground, size, rng)
        voxels = found[rng.integers(len(found))]
        return _around(ground, size, voxels[rng.integers(len(voxels))], rng)


@dataclasses.dataclass(frozen=True)
class Candidates(Placement):
    """Places crops around candidate centres, each as likely as the others.

    A centre becomes the middle of the crop as far as the volume reaches. Records without candidates
    are cut anywhere.

    Attributes:
      column: name of the points; see `datasets.points`.
    """

    column: str = "candidates"

    def __call__(self, ground: Ground, size: Sequence[int], rng: np.random.Generator) -> Window:
        """See `Placement`."""
        centres = _within(ground, points.of_record(ground.record, self.column))
        if not len(centres):
            return Uniform()(ground, size, rng)
        return _around(ground, size, centres[rng.integers(len(centres))], rng)


def _around(
    ground: Ground, size: Sequence[int], centre: np.ndarray, rng: np.random.Generator
) -> Window:
    """Returns the window around a voxel, moved as far as needed to stay in the volume.

    Along an axis where the volume is smaller than the window, it lies at a random place in it.
    """
    start = []
    for (low, high), want, middle in zip(ground.ends, size, centre.tolist(), strict=True):
        first = round(middle - (want - 1) / 2)
        inside = min(max(first, low), high - want)
        start.append(inside if high - low >= want else anywhere(low, high, want, rng))
    return Window.at(ground.ends, size, start)


def _within(ground: Ground, places: np.ndarray) -> np.ndarray:
    """Returns those of the voxels (N, 3) that crops may be cut from."""
    low, high = np.array(ground.ends).T
    return places[((places >= low - 0.5) & (places < high - 0.5)).all(axis=1)]


_known: dict[tuple[Any, ...], dict[int, np.ndarray]] = {}
_lock = threading.Lock()


def _voxels(ground: Ground) -> dict[int, np.ndarray]:
    """Returns {label value: voxels (N, 3) of it}, N at most `_VOXELS`, kept for later calls."""
    record = ground.record
    if not record["mask_valid"]:
        return {}
    key = record["source"], record["study_id"], record["mask"].shape, record["affine"].tobytes()
    with _lock:
        if key in _known:
            return _known[key]
    found = _drawn(np.asarray(record["mask"]))
    with _lock:
        if len(_known) > 1 << 8:  # 6 kB a label each
            _known.clear()
        _known[key] = found
    return found


def _drawn(mask: np.ndarray) -> dict[int, np.ndarray]:
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
