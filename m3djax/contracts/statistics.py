"""Bootstrap intervals over independent units: crops of a scan, studies, patients.

Uses the percentile bootstrap (Efron 1979): whole units are drawn with replacement. All methods get
the same draws, so that differences of two methods are paired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 4000
LEVEL = 0.95
_ELEMENTS = 1 << 23  # largest table of resamples x values


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A number with its bootstrap resamples.

    Attributes:
      value: the number for all units.
      samples: the number for each resample; NaN where it is undefined.
    """

    value: float
    samples: Float[np.ndarray, " r"]

    def __sub__(self, other: Estimate) -> Estimate:
        """Returns the paired difference. Both estimates must come from the same draws."""
        return Estimate(self.value - other.value, self.samples - other.samples)

    @property
    def interval(self) -> list[float]:
        """Returns `[low, high]`, the range of the middle 95 % of the resamples."""
        tail = (1 - LEVEL) / 2
        return [float(end) for end in np.nanquantile(self.samples, (tail, 1 - tail))]

    def to_json(self) -> dict[str, Any]:
        """Returns the value and the interval, in the form of the stored results."""
        return {"value": self.value, "interval": self.interval}


def number_text(number: Mapping[str, Any], style: str) -> str:
    """Returns a stored estimate as "value [low, high]", each in the format `style`."""
    low, high = number["interval"]
    return f"{number['value']:{style}} [{low:{style}}, {high:{style}}]"


def verdict(interval: Sequence[float]) -> str:
    """Returns "better than", "worse than" or "not clearly different from", by a gain's interval."""
    low, high = interval
    return "better than" if low > 0 else "worse than" if high < 0 else "not clearly different from"


def against(interval: Sequence[float] | None, expected: float) -> str:
    """Returns a comparison of a number with an expected number, in words.

    Args:
      interval: `[low, high]`, the interval of the number; None if it has none.
      expected: the expected number, such as chance.
    """
    if interval is None:
        return "beside"
    low, high = interval
    return "above" if low > expected else "below" if high < expected else "no better than"


def draw(units: int, *, seed: int = 0, resamples: int = RESAMPLES) -> Float[np.ndarray, "r u"]:
    """Returns the number of times that each unit is drawn in each resample.

    Raises:
      ValueError: there are fewer than two units, so their spread is unknown.
    """
    if units < 2:
        raise ValueError(f"an interval needs at least 2 independent units, and there are {units}.")
    counts = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), resamples)
    return counts.astype(np.float64)


def weighted_mean(
    sums: Float[np.ndarray, " u"], weights: Float[np.ndarray, " u"], draws: Float[np.ndarray, "r u"]
) -> Estimate:
    """Returns the weighted mean over units of different sizes.

    Args:
      sums: contribution of each unit to the numerator.
      weights: contribution of each unit to the denominator.
      draws: see `draw`.
    """
    value = _ratio(sums.sum(), weights.sum())
    return Estimate(float(value), _ratio(draws @ sums, draws @ weights))


def balanced_accuracy(
    correct: Float[np.ndarray, "u c"],
    total: Float[np.ndarray, "u c"],
    draws: Float[np.ndarray, "r u"],
) -> Estimate:
    """Returns the mean recall of the classes. A resample counts only the classes in it.

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
    """Returns the median of values that belong to units.

    Args:
      values: (n,) the values; a unit may have any number of them.
      unit: (n,) number of the unit of each value.
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
    """Returns the mean of estimates that come from the same draws."""
    value = float(np.mean([estimate.value for estimate in estimates]))
    return Estimate(value, np.mean([estimate.samples for estimate in estimates], axis=0))


def _ratio(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns sums / weights; NaN where the weight is 0."""
    return np.where(weights > 0, sums / np.where(weights > 0, weights, 1), np.nan)
