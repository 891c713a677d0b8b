"""Chooses the labels to ask about, so that a question does not reveal its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.captions import CropMasks
from data_pipelines.lru import LruCache

_LOOKS = (128, 1024)
"""Minimum and maximum number of crops for counting shares; fewer if crops are large."""
_VOXELS = 1 << 17
"""Maximum number of counted voxels of a crop; larger crops are subsampled on a regular grid."""
_ROUNDS = 30
_SOMETIMES = 0.1
"""Minimum share of crops with a label, and of crops without it, for questions about it."""


@dataclasses.dataclass(frozen=True)
class Odds:
    """Probabilities of questions about one crop; their sum may be less than 1.

    Attributes:
      yes: {visible label: probability}.
      no: {absent label: probability}.
      wrong: {absent label: weight as a wrong choice}.
    """

    yes: dict[int, float]
    no: dict[int, float]
    wrong: dict[int, float]


def odds(
    others: CropMasks | None,
    values: tuple[int, ...],
    visible: Sequence[int],
    absent: Sequence[int],
    least: int,
) -> Odds:
    """Returns the probability of a question about each label of a crop.

    Let p be the share of crops that show a label. The probability of a question about the label is
    proportional to 1/p in crops that show it, and to 1/(1-p) in crops without it. Over many crops
    both answers are then equally frequent for every single label, whatever other labels the crops
    show. Labels that are visible in very few or in nearly all crops are left out.

    The balance holds only if the choice to ask does not depend on the crop. So if no label is
    drawn, no question of this kind may be asked. Among the choices of questions, a label is wrong
    three times as often as it is right, as nearly as weights allow.

    Args:
      others: other crops of the record. With None the shares are not known; then "yes" and "no" are
        equally likely, but not for every single label.
      values: labels to ask about.
      visible: values that the crop shows.
      absent: values without a voxel in the crop.
      least: minimum number of voxels of a visible label.
    """
    if others is None:
        if not visible or not absent:
            return Odds({}, {}, {})
        yes, no = ({v: 0.5 / len(some) for v in some} for some in (visible, absent))
        return Odds(yes, no, no)
    yes, no, wrong = (
        {value: table[value] for value in some if value in table}
        for table, some in zip(
            _shared(others, values, least), (visible, absent, absent), strict=True
        )
    )
    return Odds(yes, no, wrong)


_Factors = tuple[Mapping[int, float], Mapping[int, float], Mapping[int, float]]
_cache = LruCache[_Factors](1 << 12)  # a few kilobytes each


def _shared(others: CropMasks, values: tuple[int, ...], least: int) -> _Factors:
    """Returns factors for all labels; they are computed once per record and crop size."""
    key = (*others.key(), values, least)
    return _cache.get(key, lambda: _factors(others, values, least))


def _factors(others: CropMasks, values: tuple[int, ...], least: int) -> _Factors:
    rng = np.random.default_rng(0)
    count = np.clip((_LOOKS[0] * _VOXELS) // others(rng).size, *_LOOKS)
    counts = np.stack([_count(others(rng)) for _ in range(count)])[:, list(values)]
    seen, gone = counts >= least, counts == 0
    shares = np.stack([seen.mean(0), gone.mean(0)])
    asked = shares.min(0) >= _SOMETIMES
    if not asked.any():
        return {}, {}, {}
    yes, no = np.where(asked, shares.min(0) / np.maximum(shares, 1e-9), 0)
    # Scaled to be as large as possible while the sum in every crop is at most 1.
    most = (seen @ yes + gone @ no).max()
    yes, no, wrong = (
        {value: float(x) for value, x in zip(values, some, strict=True) if x}
        for some in (yes / most, no / most, _wrong(seen * yes, gone * asked, no))
    )
    return yes, no, wrong


def _wrong(right: np.ndarray, gone: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns weights with which a label is a wrong choice as often as it is right, for one draw.

    Args:
      right: (crops, labels) frequency of each label as the right choice in each crop.
      gone: (crops, labels) True if the label can be a wrong choice.
      weights: (labels,) initial weights.
    """
    often = right.sum(1, keepdims=True)
    for _ in range(_ROUNDS):
        chance = gone * weights
        chance /= np.maximum(chance.sum(1, keepdims=True), 1e-9)
        drawn = (often * chance).sum(0)
        weights = weights * np.clip(right.sum(0) / np.maximum(drawn, 1e-9), 0.5, 2)
    return weights


def _count(mask: np.ndarray) -> np.ndarray:
    step = max(round((mask.size / _VOXELS) ** (1 / 3)), 1)
    looked = mask[::step, ::step, ::step]
    return np.bincount(looked.ravel(), minlength=256) * (mask.size / looked.size)
