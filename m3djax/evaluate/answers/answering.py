"""From questions to a table of answers, which an interruption leaves as it is."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable

import numpy as np

from m3djax.evaluate.answers.answerers import Answerer
from m3djax.evaluate.answers.asking import Asked
from m3djax.evaluate.answers.table import AnswerTable, Row

log = logging.getLogger(__name__)


def answer_all(
    crops: Iterable[Asked],
    table: AnswerTable,
    load: Callable[[], Answerer],
    *,
    batch_size: int,
    questions: int,
) -> list[Row]:
    """Answers what the table has no answer for, and returns all rows in order.

    Args:
      crops: with their questions.
      table: grows with every answer.
      load: makes the model; called if there is something left to ask.
      batch_size: volumes that are encoded at once.
      questions: answers that are written at once.
    """
    load = functools.cache(load)
    order: list[Row] = []
    waiting: list[Asked] = []
    for one in crops:
        order += one.rows
        if missing := table.missing(one.rows):
            waiting.append(Asked(one.sample, missing))
        if len(waiting) == batch_size:
            _ask(load(), waiting, table, batch_size, questions)
            waiting = []
    if waiting:
        _ask(load(), waiting, table, batch_size, questions)
    return [table.rows[row.key] for row in order]


def _ask(
    answerer: Answerer, waiting: list[Asked], table: AnswerTable, batch_size: int, questions: int
) -> None:
    """Answers the questions about some volumes, part by part."""
    # Filled up to one size, so that one compilation serves all.
    filled = [waiting[number % len(waiting)].sample for number in range(batch_size)]
    batch = {n: np.stack([one[n] for one in filled]) for n in ("image", "scale", "offset")}
    rows = [(number, row) for number, one in enumerate(waiting) for row in one.rows]
    # Answers that are written at once take as long as the longest, so those of a kind go together.
    rows.sort(key=lambda numbered: numbered[1].kind)
    seen = answerer.look(batch)
    for first in range(0, len(rows), questions):
        about, part = zip(*rows[first : first + questions], strict=True)
        answers = answerer.answer(seen, part, about)
        table.add(
            dataclasses.replace(row, said=answer.text.strip(), ended=answer.ended)
            for row, answer in zip(part, answers, strict=True)
        )
    log.info("%d questions answered", len(table.rows))
