"""The records and organs on which a probe is fitted and tested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipelines.datasets import open_dataset
from m3djax.contracts.findings import EvaluationError
from m3djax.evaluate.probe.organs import Groups, LabelledPatches, group_names, joined


def masked_records(
    path: str, split: str, studies: Sequence[str], groups: Groups
) -> list[tuple[dict[str, Any], dict[int, str]]]:
    """Returns records of a split that have a mask, with the organ of each label value.

    Args:
      path: folder of the dataset.
      split: split of the dataset.
      studies: ids of the studies; (): all studies with masks.
      groups: see `group_names`.

    Raises:
      EvaluationError: a study is missing or has no mask.
      DataError: the dataset cannot be read.
    """
    source = open_dataset(path, split)
    names = group_names(source.mask_names, groups)
    records = {record["study_id"]: record for record in source if record["mask_valid"]}
    missing = [study for study in studies if study not in records]
    if missing or not records:
        raise EvaluationError(
            f"{path}: split {split!r} has no mask for {', '.join(missing) or 'any study'}. "
            f"Cure: masks, or studies that have one: {', '.join(records) or 'none'}."
        )
    return [(records[study], names) for study in studies or records]


def common_organs(
    train: list[LabelledPatches], test: list[LabelledPatches], organs: int, least: int
) -> Int[np.ndarray, " k"]:
    """Returns the organs with enough patches in both splits and two blocks in the training split.

    Args:
      train: patches of the training split.
      test: patches of the test split.
      organs: number of organs.
      least: smallest number of patches per organ in each split.
    """
    counts = [np.bincount(joined(side, "organ"), minlength=organs) for side in (train, test)]
    # Cross-validation leaves blocks out. An organ in only one block could not be learned then.
    blocks = np.array([_blocks_of(train, organ) for organ in range(organs)])
    return np.flatnonzero((np.minimum(*counts) >= least) & (blocks > 1))


def thin_out(parts: list[LabelledPatches], most: int, seed: int) -> list[LabelledPatches]:
    """Chooses at random up to `most` patches per organ over all parts."""
    organ = joined(parts, "organ")
    order = np.random.default_rng(seed).permutation(len(organ))
    chosen = np.zeros(len(organ), bool)
    for index in np.unique(organ):
        chosen[order[organ[order] == index][:most]] = True
    ends = np.cumsum([len(part.organ) for part in parts])[:-1]
    return [part.take(keep) for part, keep in zip(parts, np.split(chosen, ends), strict=True)]


def _blocks_of(parts: list[LabelledPatches], organ: int) -> int:
    return sum(len(np.unique(part.block[part.organ == organ])) for part in parts)
