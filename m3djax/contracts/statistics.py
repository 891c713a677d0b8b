"""Bootstrap intervals over independent units: crops of a scan, studies, patients.

The percentile bootstrap (Efron 1979): whole units are drawn with replacement, the same ones for all
methods, so that the difference of two methods keeps what they share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 4000
LEVEL = 0.95
_ELEMENTS = 1 << 23  # of one table of resamples by values


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A number and how it varies when other units are drawn.

    Attributes:
      value: on all units.
      samples: the same on every resample; NaN where it is undefined.
    """

    value: float
    samples: Float[np.ndarray, " r"]

    def __sub__(self, other: Estimate) -> Estimate:
        """The paired difference; both must come from the same draws."""
        return Estimate(self.value - other.value, self.samples - other.samples)

    @property
    def interval(self) -> list[float]:
        """`[low, high]`, which holds the middle 95 % of the resamples."""
        tail = (1 - LEVEL) / 2
        return [float(end) for end in np.nanquantile(self.samples, (tail, 1 - tail))]

    def to_json(self) -> dict[str, Any]:
        """As results are stored."""
        return {"value": self.value, "interval": self.interval}


def number_text(number: Mapping[str, Any], style: str) -> str:
    """A stored estimate as "value [low, high]", each in the format `style`."""
    low, high = number["interval"]
    return f"{number['value']:{style}} [{low:{style}}, {high:{style}}]"


def verdict(interval: Sequence[float]) -> str:
    """What the interval of a gain says about the one that gains."""
    low, high = interval
    return "better than" if low > 0 else "worse than" if high < 0 else "not clearly different from"


def against(interval: Sequence[float] | None, expected: float) -> str:
    """Where a number with this interval lies beside one that needs no model."""
    if interval is None:
        return "beside"
    low, high = interval
    return "above" if low > expected else "below" if high < expected else "no better than"


def draw(units: int, *, seed: int = 0, resamples: int = RESAMPLES) -> Float[np.ndarray, "r u"]:
    """How often every unit is drawn in every resample.

    Raises:
      ValueError: there are fewer than two units, so nothing can be said about their spread.
    """
    if units < 2:
        raise ValueError(f"an interval needs at least 2 independent units, and there are {units}.")
    counts = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), resamples)
    return counts.astype(np.float64)


def weighted_mean(
    sums: Float[np.ndarray, " u"], weights: Float[np.ndarray, " u"], draws: Float[np.ndarray, "r u"]
) -> Estimate:
    """A mean over units of different size.

    Args:
      sums: what every unit adds to the numerator.
      weights: what it adds to the denominator.
      draws: see `draw`.
    """
    value = _ratio(sums.sum(), weights.sum())
    return Estimate(float(value), _ratio(draws @ sums, draws @ weights))


def balanced_accuracy(
    correct: Float[np.ndarray, "u c"],
    total: Float[np.ndarray, "u c"],
    draws: Float[np.ndarray, "r u"],
) -> Estimate:
    """The mean recall of the classes; in a resample, of those that it holds.

    Args:
      correct: right answers per unit and true class.
      total: questions per unit and true class.
      draws: see `draw`.
    """
    value = np.nanmean(_ratio(correct.sum(0), total.sum(0)))
    return Estimate(float(value), np.nanmean(_ratio(draws @ correct, draws @ total), axis=-1))


def median(
    values: Float[np.ndarray, " n"], unit: Int[np.ndarray, " n"], draws: Float[np.ndarray, "r u"]
) -> Estimate:
    """The median of values that come in units.

    Args:
      values: any number per unit.
      unit: which one each value belongs to.
      draws: see `draw`.
    """
    order = np.argsort(values, kind="stable")
    ordered, member = np.asarray(values, np.float64)[order], unit[order]
    samples = []
    for part in np.array_split(draws, max(len(draws) * len(values) // _ELEMENTS, 1)):
        below = np.cumsum(part[:, member], axis=1)
        half = below[:, -1:] / 2
        low, high = (below < half).sum(1), (below <= half).sum(1)
        samples.append((ordered[low] + ordered[np.minimum(high, len(ordered) - 1)]) / 2)
    return Estimate(float(np.median(ordered)), np.concatenate(samples))


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates that come from the same draws."""
    value = float(np.mean([estimate.value for estimate in estimates]))
    return Estimate(value, np.mean([estimate.samples for estimate in estimates], axis=0))


def _ratio(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """NaN where there is no weight."""
    return np.where(weights > 0, sums / np.where(weights > 0, weights, 1), np.nan)
