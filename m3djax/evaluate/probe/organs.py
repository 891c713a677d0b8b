"""The organ of each patch, from the label maps of records."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from m3djax.evaluate.tiles import Tiles, cut
from m3djax.models.patches import Size, patch_grid

Groups = tuple[tuple[str, str], ...]
NONE = -1


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledPatches:
    """Patches of one record's crops that each show mostly one organ.

    Attributes:
      record: the record.
      tiles: its crops. They overlap, so a place is in several crops with different surroundings.
      crop: (n,) crop of each patch.
      row: (n,) row of the patch among the crop's patches.
      organ: (n,) index into the list of organs.
      block: (n,) name of the study and of the region with the patch's centre. A region is as large
        as a crop, so patches of different blocks share few voxels.
    """

    record: dict[str, Any]
    tiles: Tiles
    crop: Int[np.ndarray, " n"]
    row: Int[np.ndarray, " n"]
    organ: Int[np.ndarray, " n"]
    block: np.ndarray

    def take(self, chosen: np.ndarray) -> LabelledPatches:
        """Returns some of the patches, by index or by mask."""
        names = ("crop", "row", "organ", "block")
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def renumber(self, kept: Int[np.ndarray, " k"]) -> LabelledPatches:
        """Returns the patches of the organs `kept`, which become 0, 1, 2, ..."""
        part = self.take(np.isin(self.organ, kept))
        return dataclasses.replace(part, organ=np.searchsorted(kept, part.organ))


def joined(parts: list[LabelledPatches], field: str) -> np.ndarray:
    """Concatenates a field of the patches of several records."""
    return np.concatenate([getattr(part, field) for part in parts])


def group_names(names: dict[int, str], groups: Groups) -> dict[int, str]:
    """Returns the names of label values after grouping.

    Args:
      names: label value -> name.
      groups: (regex, name of the group); the first regex that matches the whole name counts.
    """

    def grouped(name: str) -> str:
        return next((group for regex, group in groups if re.fullmatch(regex, name)), name)

    return {value: grouped(name) for value, name in names.items() if value}


def label_patches(
    record: dict[str, Any], names: dict[int, str], organs: list[str], size: Size, patch: Size
) -> LabelledPatches:
    """Finds the patches with more than half of their voxels in one organ.

    Background is no organ. Labels that are not annotated in the record's mask do not count either.

    Args:
      record: see `data_pipelines.datasets.records`.
      names: label value -> organ.
      organs: the organs to look for.
      size: size of a crop in voxels.
      patch: size of a patch in voxels.
    """
    table = np.full(256, NONE, np.int16)
    for value, name in names.items():
        if name in organs and record["annotated"][value]:
            table[value] = organs.index(name)
    # Half a crop minus half a patch, so that overlapping crops place their patches differently.
    half = tuple(max(side // 2 - p // 2, 1) for side, p in zip(size, patch, strict=True))
    stride: Size = (half[0], half[1], half[2])
    tiles = cut(record["image"], size, stride)
    masks = cut(record["mask"], size, stride)
    labels = np.where(tiles.inside, table[masks.images], NONE)
    organ = _majority(labels, patch, len(organs))
    crop, row = np.nonzero(organ != NONE)
    centres = tiles.starts[crop] + _centres(size, patch)[row]
    regions = (centres // np.array(size)).astype(int)
    block = [f"{record['study_id']} {a} {b} {c}" for a, b, c in regions]
    return LabelledPatches(record, tiles, crop, row, organ[crop, row], np.array(block, str))


def _majority(
    labels: Int[np.ndarray, "t d h w"], patch: Size, organs: int
) -> Int[np.ndarray, "t n"]:
    """Returns the organ that covers more than half of each patch, or `NONE`."""
    shape = labels.shape[1:]
    (gd, gh, gw), (pd, ph, pw) = patch_grid((shape[0], shape[1], shape[2]), patch), patch
    rows = labels.reshape(-1, gd, pd, gh, ph, gw, pw).transpose(0, 1, 3, 5, 2, 4, 6)
    rows = rows.reshape(-1, pd * ph * pw) - NONE  # none becomes 0
    offsets = np.arange(len(rows))[:, None] * (organs + 1)
    counts = np.bincount((rows + offsets).ravel(), minlength=len(rows) * (organs + 1))
    counts = counts.reshape(-1, organs + 1)[:, 1:]
    best = np.where(counts.max(1) > pd * ph * pw / 2, counts.argmax(1), NONE)
    return best.reshape(len(labels), -1)


def _centres(size: Size, patch: Size) -> Float[np.ndarray, "n 3"]:
    """Returns the centre of every patch of a crop, in raster order."""
    axes = [np.arange(p / 2, side, p) for side, p in zip(size, patch, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
