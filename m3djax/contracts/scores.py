"""Scores of single samples: the table that an evaluation writes and a comparison of runs reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Float

from data_pipelines.program import program
from m3djax.contracts import statistics
from m3djax.contracts.findings import EvaluationError, Findings, Table
from m3djax.contracts.statistics import Estimate
from m3djax.contracts.units import Units

if TYPE_CHECKING:
    from etils import epath

FILE = "scores.jsonl"
OWN = "this run"
"""The method of a run's own scores. Other methods are baselines and other models."""


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """One metric of one group of samples.

    Attributes:
      group: what the samples have in common, such as a pool, a study or a kind of question.
      metric: name of the metric.
      units: the independent unit of each sample.
      sample: (n,) name of each sample, unique in the group.
      value: (n,) the scores; NaN for a sample without a score.
      weight: (n,) weight of each sample in a mean.
      method: the model or baseline that made the predictions.
    """

    group: str
    metric: str
    units: Units
    sample: np.ndarray
    value: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    method: str = OWN

    @classmethod
    def of(
        cls,
        group: str,
        metric: str,
        units: Units,
        sample: Any,
        value: Any,
        weight: Any = 1.0,
        method: str = OWN,
    ) -> Self:
        """Makes a column from array-like values.

        Args:
          group: see `Column`, as for the other arguments.
          metric: name of the metric.
          units: the independent unit of each sample.
          sample: (n,) names of the samples.
          value: (n,) the scores.
          weight: (n,) weights, or one weight for all samples.
          method: the model or baseline.
        """
        values = np.asarray(value, np.float64)
        weights = np.broadcast_to(np.asarray(weight, np.float64), values.shape)
        return cls(group, metric, units, np.asarray(sample, str), values, weights, method)

    def sums(self) -> tuple[Float[np.ndarray, " u"], Float[np.ndarray, " u"]]:
        """Returns the weighted sum and the weight of every unit; skips samples without a score."""
        there = np.isfinite(self.value)
        number, weight = self.units.number[there], self.weight[there]
        size = len(self.units)
        sums = np.bincount(number, self.value[there] * weight, size)
        return sums, np.bincount(number, weight, size)

    def mean(self, draws: Float[np.ndarray, "r u"]) -> Estimate:
        """Returns the weighted mean. `draws` is the result of `statistics.draw` for all units."""
        return statistics.weighted_mean(*self.sums(), draws)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the scores as rows that JSON can hold; the value of a missing score is None."""
        for number, value in enumerate(self.value):
            yield {
                "unit": self.units.names[self.units.number[number]],
                "group": self.group,
                "sample": str(self.sample[number]),
                "method": self.method,
                "metric": self.metric,
                "value": float(value) if np.isfinite(value) else None,
                "weight": float(self.weight[number]),
            }


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """All scores of an evaluation.

    Attributes:
      columns: one for every group, method and metric.
    """

    columns: tuple[Column, ...]

    def column(self, group: str, metric: str, method: str = OWN) -> Column:
        """Returns one column."""
        return self.by_metric(group, method)[metric]

    def by_metric(self, group: str, method: str = OWN) -> dict[str, Column]:
        """Returns the columns of a group and a method by metric."""
        return {c.metric: c for c in self.columns if (c.group, c.method) == (group, method)}

    def groups(self) -> list[str]:
        """Returns the groups in the order in which they were scored."""
        return list(dict.fromkeys(column.group for column in self.columns))

    def write(self, folder: epath.Path) -> None:
        """Writes the table into an evaluator's folder. The file is complete or absent."""
        from data_pipelines.files import write_whole

        lines = (json.dumps(row) + "\n" for column in self.columns for row in column.rows())
        write_whole(folder / FILE, "".join(lines))

    @classmethod
    def read(cls, folder: epath.Path) -> Self:
        """Reads the table of an evaluator's folder.

        Raises:
          EvaluationError: the table is missing or damaged.
        """
        cure = f"Cure: {program()} evaluate RUN."
        if not (folder / FILE).exists():
            raise EvaluationError(f"{folder / FILE}: there are no scores. {cure}")
        parts: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        try:
            for row in map(json.loads, (folder / FILE).read_text().splitlines()):
                parts.setdefault((row["group"], row["method"], row["metric"]), []).append(row)
            return cls(tuple(_column(rows) for rows in parts.values()))
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{folder / FILE}: is damaged ({error!r}). {cure}") from error


def _column(rows: list[dict[str, Any]]) -> Column:
    def field(name: str) -> list[Any]:
        return [row[name] for row in rows]

    first, units = rows[0], Units.of(field("unit"), "units")
    fields = field("sample"), field("value"), field("weight")
    return Column.of(first["group"], first["metric"], units, *fields, first["method"])


def present_means(title: str, scores: Scores) -> Findings:
    """Returns findings with the mean of every metric, with intervals over units.

    Args:
      title: heading of the section in the report.
      scores: all scores; at least two units of every column must have scores.

    Raises:
      EvaluationError: a column has scores of fewer than two units.
    """
    found: dict[str, Any] = {}
    units: dict[str, int] = {}
    rows = []
    for column in scores.columns:
        sums, weights = column.sums()
        counted = weights > 0  # units without a score do not count
        if counted.sum() < 2:
            raise EvaluationError(
                f"{title}, {column.group or column.metric}: {counted.sum()} independent units have "
                "scores, and an interval needs 2. Cure: put more scans into the split."
            )
        draws = statistics.draw(int(counted.sum()))
        estimate = statistics.weighted_mean(sums[counted], weights[counted], draws)
        number = estimate.to_json()
        units[column.units.kind] = max(units.get(column.units.kind, 0), int(counted.sum()))
        found.setdefault(column.group, {}).setdefault(column.method, {})[column.metric] = number
        text = statistics.number_text(number, ".4g")
        rows.append((column.group, column.method, column.metric, text))
    own = [column for column in scores.columns if column.method == OWN]
    curves = {
        "_".join(filter(None, (c.group, c.metric))): found[c.group][OWN][c.metric]["value"]
        for c in own
    }
    kinds = " and ".join(f"{count:,} {kind}" for kind, count in units.items())
    note = f"In brackets: 95 % bootstrap over {kinds}."
    table = Table(title, ("samples", "method", "metric", "mean"), tuple(rows), note)
    return Findings(title, {**curves, "means": found}, tables=(table,))
