"""Means of scores with intervals, by kind and type of question and by model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from m3djax.contracts import statistics
from m3djax.contracts.statistics import Estimate
from m3djax.evaluate.answers import metrics
from m3djax.evaluate.answers.metrics import Values
from m3djax.evaluate.answers.table import Row

MAIN = {
    "choice": "accuracy",
    "yes_no": "accuracy",
    "seg": "accuracy",
    "seg_described": "accuracy",
    "rec": "iou",
    "rec_described": "iou",
    "reg": "exact",
}
"""Kind of question -> its main metric, by which models are compared; see `metrics.SCORERS`."""
TYPES_MEAN = "mean of types"
ONE_FOR_ALL = "one answer for all"
"""Guess: the most frequent right answer, given to every question."""


def main_of(kind: str) -> str:
    """Returns the main metric of a kind of question; ROUGE-1 for free text."""
    return MAIN.get(kind, "rouge1")


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """The questions of one kind, with the answers and scores of every model.

    Attributes:
      name: name of the kind.
      answers: model -> the questions with its answers; the order is the same for all models.
      unit: number of each question's independent unit.
      scores: model -> metric -> a number per question.
    """

    name: str
    answers: Mapping[str, Sequence[Row]]
    unit: Int[np.ndarray, " n"]
    scores: Mapping[str, Values]

    @property
    def rows(self) -> Sequence[Row]:
        """Returns the questions, with the answers of the first model."""
        return next(iter(self.answers.values()))

    @property
    def main(self) -> str:
        """Returns the main metric, by which models are compared."""
        return main_of(self.name)

    @property
    def types(self) -> list[str]:
        """Returns the types of questions within this kind, sorted."""
        return sorted({row.type for row in self.rows})

    def of_type(self, type_: str) -> Bool[np.ndarray, " n"]:
        """Returns a mask of the questions of a type."""
        return np.array([row.type == type_ for row in self.rows])

    def table(self, model: str) -> list[dict[str, Any]]:
        """Returns a model's answers with their scores; scores that are not finite are left out."""
        return [
            dataclasses.asdict(row)
            | {
                metric: float(values[number])
                for metric, values in self.scores[model].items()
                if np.isfinite(values[number])
            }
            for number, row in enumerate(self.answers[model])
        ]

    def numbers(self, seed: int) -> dict[str, Any]:
        """Returns all numbers of this kind of question, JSON-able."""
        units = np.unique(self.unit)
        unit = np.searchsorted(units, self.unit)
        draws = statistics.draw(len(units), seed=seed)
        found: dict[str, Any] = {"questions": len(self.rows), "units": len(units)}
        estimates = {
            model: self._estimates(scores, unit, draws) for model, scores in self.scores.items()
        }
        found["models"] = {
            model: {
                part: {metric: _json(value) for metric, value in values.items()}
                for part, values in parts.items()
            }
            for model, parts in estimates.items()
        }
        found["questions_by_type"] = {type_: int(self.of_type(type_).sum()) for type_ in self.types}
        first, *others = estimates
        main = {model: parts["all"].get(self.main) for model, parts in estimates.items()}
        found["gain_over"] = {
            other: _json(ours - theirs)
            for other in others
            if (ours := main[first]) and (theirs := main[other])
        }
        found["guesses"] = self._guesses(first)
        return found

    def _estimates(
        self, scores: Values, unit: Int[np.ndarray, " n"], draws: Float[np.ndarray, "r u"]
    ) -> dict[str, dict[str, Estimate]]:
        """Returns the means: part of the questions -> metric -> mean."""
        everything = np.ones(len(self.rows), bool)
        parts = {"all": _means(scores, everything, unit, draws)}
        if self.name == "yes_no":
            parts["all"]["balanced"] = self._balanced(scores["accuracy"], unit, draws)
        if len(self.types) > 1:
            by_type = {t: _means(scores, self.of_type(t), unit, draws) for t in self.types}
            shared = set.intersection(*(set(means) for means in by_type.values()))
            parts[TYPES_MEAN] = {
                metric: statistics.mean([means[metric] for means in by_type.values()])
                for metric in parts["all"]
                if metric in shared
            }
            parts |= by_type
        return parts

    def _balanced(
        self,
        right: Float[np.ndarray, " n"],
        unit: Int[np.ndarray, " n"],
        draws: Float[np.ndarray, "r u"],
    ) -> Estimate:
        """Returns the mean of the accuracies on "yes" and on "no" questions.

        It is 50 % if all questions get the same answer.
        """
        wanted = np.unique([metrics.meaning(row) for row in self.rows], return_inverse=True)[1]
        shape = (draws.shape[1], wanted.max() + 1)
        total, correct = np.zeros(shape), np.zeros(shape)
        np.add.at(total, (unit, wanted), 1)
        np.add.at(correct, (unit, wanted), right)
        return statistics.balanced_accuracy(correct, total, draws)

    def _guesses(self, model: str) -> dict[str, dict[str, float]]:
        """Returns the scores of guesses: guess -> part of the questions -> the main metric."""
        masks = {"all": np.ones(len(self.rows), bool)}
        masks |= {type_: self.of_type(type_) for type_ in self.types}
        guesses = {
            name: {
                part: float(values[there].mean())
                for part, mask in masks.items()
                if (there := mask & np.isfinite(values)).any()
            }
            for metric, name in metrics.GUESSES.items()
            if (values := self.scores[model].get(metric)) is not None
        }
        if self.name in ("choice", "yes_no"):
            guesses[ONE_FOR_ALL] = {
                part: metrics.most_frequent(list(itertools.compress(self.rows, mask)))
                for part, mask in masks.items()
            }
        return guesses


def _json(estimate: Estimate) -> dict[str, Any]:
    """Returns an estimate as stored in results; with fewer than two units, without interval."""
    undefined = np.isnan(estimate.samples).all()
    return {"value": estimate.value, "interval": None if undefined else estimate.interval}


def _means(
    scores: Values,
    chosen: Bool[np.ndarray, " n"],
    unit: Int[np.ndarray, " n"],
    draws: Float[np.ndarray, "r u"],
) -> dict[str, Estimate]:
    """Returns the mean of each metric over the chosen questions that have a number."""
    means = {}
    for metric, values in scores.items():
        there = chosen & np.isfinite(values)
        if metric in metrics.GUESSES or not there.any():
            continue
        size = draws.shape[1]
        sums = np.bincount(unit[there], values[there], size)
        weights = np.bincount(unit[there], minlength=size).astype(float)
        mean = statistics.weighted_mean(sums, weights, draws)
        if np.count_nonzero(weights) < 2:
            mean = Estimate(mean.value, np.full(len(draws), np.nan))  # the spread is unknown
        means[metric] = mean
    return means
