"""Scores of answers, and the numbers of every kind of question from its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from m3djax.contracts.scores import OWN, Column, Scores
from m3djax.contracts.units import Units
from m3djax.evaluate.answers import metrics
from m3djax.evaluate.answers.numbers import Kind
from m3djax.evaluate.answers.table import Row
from m3djax.evaluate.text.bert_score import BertScore

Answered = Mapping[str, list[Row]]
"""Model -> the questions with its answers; the order is the same for all models."""


def score_answers(answered: Answered, units: Units, bert_score: BertScore | None = None) -> Scores:
    """Scores every answer; the groups of the scores are the kinds of questions.

    Args:
      answered: the answers of every model.
      units: the independent unit of every question.
      bert_score: the encoder of BERTScore; None: no BERTScore.
    """
    rows = answered[OWN]
    columns = []
    for kind in dict.fromkeys(row.kind for row in rows):
        of_kind = units.take(np.array([row.kind == kind for row in rows]))
        sample = ["/".join(map(str, row.key)) for row in rows if row.kind == kind]
        for model, given in answered.items():
            some = [row for row in given if row.kind == kind]
            for metric, values in metrics.score(kind, some, bert_score).items():
                columns.append(Column.of(kind, metric, of_kind, sample, values, method=model))
    return Scores(tuple(columns))


def kind_of(name: str, answered: Answered, scores: Scores) -> Kind:
    """Returns the questions of a kind with the scores of every model."""
    said = {model: [row for row in rows if row.kind == name] for model, rows in answered.items()}
    columns = {model: scores.by_metric(name, model) for model in answered}
    unit = next(iter(columns[OWN].values())).units.number
    values = {
        model: {metric: column.value for metric, column in some.items()}
        for model, some in columns.items()
    }
    return Kind(name, said, unit, values)


def numbers_of(kinds: list[Kind], seed: int) -> tuple[dict[str, Any], list[str]]:
    """Returns the numbers of each kind; and a note on each kind that is about only one place."""
    found: dict[str, Any] = {}
    notes = []
    for kind in kinds:
        if len(np.unique(kind.unit)) > 1:
            found[kind.name] = kind.numbers(seed)
        else:
            notes.append(
                f"{kind.name}: the {len(kind.rows)} questions are about one place, and an "
                "interval needs 2: left out."
            )
    return found, notes
