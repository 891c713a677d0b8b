"""Comparison of two runs by the scores of the same samples."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from m3djax.contracts import statistics
from m3djax.contracts.findings import EvaluationError
from m3djax.contracts.scores import OWN, Column, Scores
from m3djax.contracts.units import Units
from m3djax.runs.results import FOLDER


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of the mean of a metric between two runs.

    Attributes:
      group: the group of samples, such as a kind of question.
      metric: name of the metric.
      units: number of independent units in the bootstrap.
      means: mean of the first run, mean of the second, over the samples that both have scores for.
      value: second mean minus first mean.
      interval: 95 % interval of `value`, by the paired bootstrap over units.
    """

    group: str
    metric: str
    units: int
    means: tuple[float, float]
    value: float
    interval: tuple[float, float]


def compare(
    first: epath.PathLike, second: epath.PathLike, evaluator: str, *, seed: int = 0
) -> list[Difference]:
    """Compares the scores of two runs, pair by pair.

    Args:
      first: folder of an evaluated run.
      second: folder of another.
      evaluator: name of an evaluator in the configs of both.
      seed: seed of the resamples.

    Returns:
      One difference for each group and metric of the runs' own scores. Metrics with scores of a
      single independent unit have no interval and are left out.

    Raises:
      EvaluationError: a run has no scores, or the runs were not measured on the same samples.
    """
    places = [epath.Path(run) / FOLDER / evaluator for run in (first, second)]
    return compare_scores(*(Scores.read(place) for place in places), seed=seed)


def compare_scores(first: Scores, second: Scores, *, seed: int = 0) -> list[Difference]:
    """Compares two tables of scores; see `compare`."""
    ours, theirs = (
        {(c.group, c.metric): c for c in scores.columns if c.method == OWN}
        for scores in (first, second)
    )
    _same("groups and metrics", map(str, ours), map(str, theirs))
    pairs = (_paired(column, theirs[name]) for name, column in ours.items())
    return [_difference(*pair, seed) for pair in pairs if len(pair[0].units) > 1]


def _paired(one: Column, other: Column) -> tuple[Column, Column]:
    """Returns both columns with the samples that both have scores for, in one order.

    Raises:
      EvaluationError: the columns differ in their samples or weights.
    """
    where = f"{one.group}, {one.metric}".removeprefix(", ")
    _same(f"{where}: units", one.units.names, other.units.names)
    _same(f"{where}: samples", _names(one), _names(other))
    orders = [np.argsort(column.sample, kind="stable") for column in (one, other)]
    weights, values = (
        [getattr(column, field)[order] for column, order in zip((one, other), orders, strict=True)]
        for field in ("weight", "value")
    )
    if not np.allclose(*weights):
        raise EvaluationError(
            f"{where}: the runs weigh their samples differently. Cure: measure both with one "
            "evaluator config."
        )
    both = np.isfinite(values).all(axis=0)
    kept = orders[0][both]
    units = Units.of([one.units.names[n] for n in one.units.number[kept]], one.units.kind)
    fields = {"units": units, "sample": one.sample[kept], "weight": weights[0][both]}
    ours, theirs = (dataclasses.replace(one, value=value[both], **fields) for value in values)
    return ours, theirs


def _difference(one: Column, other: Column, seed: int) -> Difference:
    draws = statistics.draw(len(one.units), seed=seed)
    means = one.mean(draws), other.mean(draws)
    gain = means[1] - means[0]
    low, high = gain.interval
    values = means[0].value, means[1].value
    return Difference(one.group, one.metric, len(one.units), values, gain.value, (low, high))


def _names(column: Column) -> list[str]:
    return [
        f"{name} of {column.units.names[number]}"
        for name, number in zip(column.sample, column.units.number, strict=True)
    ]


def _same(what: str, ours: Any, theirs: Any) -> None:
    """Raises EvaluationError if two lists of names differ; the message has one missing name."""
    left, right = sorted(ours), sorted(theirs)
    if left == right:
        return
    alone = sorted(set(left) ^ set(right))
    side = "the first run alone" if alone and alone[0] in left else "the second run alone"
    named = f"{alone[0]!r} is in {side}" if alone else "one of them is repeated"
    raise EvaluationError(
        f"{what} do not match ({len(left)} and {len(right)}): {named}. Cure: measure both runs "
        "with one evaluator config on one dataset."
    )
