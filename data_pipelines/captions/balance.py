"""Which labels to ask about, so that what is asked does not tell the answer."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.captions import Looks

_LOOKS = (128, 1024)
"""Crops that shares are counted in, of large ones fewer."""
_VOXELS = 1 << 17
"""Of a larger crop only some voxels are looked at, in a grid."""
_ROUNDS = 30
_SOMETIMES = 0.1
"""Share of the crops that a label must be visible in, and absent from, to be asked about."""


@dataclasses.dataclass(frozen=True)
class Odds:
    """Probabilities of asking in one crop; they may add up to less than 1.

    Attributes:
      yes: {label that is visible: probability}.
      no: {label that is absent: probability}.
      wrong: {label that is absent: weight as a wrong choice}.
    """

    yes: dict[int, float]
    no: dict[int, float]
    wrong: dict[int, float]


def odds(
    others: Looks | None,
    values: tuple[int, ...],
    visible: Sequence[int],
    absent: Sequence[int],
    least: int,
) -> Odds:
    """How likely a crop should be asked about each label.

    A label that a share p of the crops shows is asked about with a probability that goes with 1/p
    where it is visible, and with 1/(1-p) where it is absent: over many crops both happen equally
    often, for every label by itself, whatever else is visible with it. Labels that are hardly ever
    visible, or nearly always, are left out. For this whether to ask must not depend on the crop:
    where nothing is drawn, nothing of this kind may be asked. As a choice, a label is wrong three
    times as often as right, as nearly as weights can do it.

    Args:
      others: further crops of the record; None: nobody knows shares, and only both answers as such
        are equally likely.
      values: labels that may be asked about.
      visible: those that the crop shows.
      absent: those of which it has no voxel.
      least: voxels that make a label visible.
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
_known: dict[tuple, _Factors] = {}
_lock = threading.Lock()


def _shared(others: Looks, values: tuple[int, ...], least: int) -> _Factors:
    """Probabilities for all labels; computed once for a record and a size of crops."""
    key = (*others.key(), values, least)
    with _lock:
        if key in _known:
            return _known[key]
    factors = _factors(others, values, least)
    with _lock:
        if len(_known) > 1 << 12:  # a few kilobytes each
            _known.clear()
        _known[key] = factors
    return factors


def _factors(others: Looks, values: tuple[int, ...], least: int) -> _Factors:
    rng = np.random.default_rng(0)
    count = np.clip((_LOOKS[0] * _VOXELS) // others(rng).size, *_LOOKS)
    counts = np.stack([_count(others(rng)) for _ in range(count)])[:, list(values)]
    seen, gone = counts >= least, counts == 0
    shares = np.stack([seen.mean(0), gone.mean(0)])
    asked = shares.min(0) >= _SOMETIMES
    if not asked.any():
        return {}, {}, {}
    yes, no = np.where(asked, shares.min(0) / np.maximum(shares, 1e-9), 0)
    # As often as possible, but no crop may have more than 1 in all.
    most = (seen @ yes + gone @ no).max()
    yes, no, wrong = (
        {value: float(x) for value, x in zip(values, some, strict=True) if x}
        for some in (yes / most, no / most, _wrong(seen * yes, gone * asked, no))
    )
    return yes, no, wrong


def _wrong(right: np.ndarray, gone: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weights of wrong choices with which a label is one of a crop's as often as it is right.

    Args:
      right: (looks, labels) how often each label is the right choice in each look.
      gone: (looks, labels) whether it can be a wrong one.
      weights: (labels,) to start with.
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
