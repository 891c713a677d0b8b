"""Questions about crops as samples, and their answers, which are kept after an interruption."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from m3djax.contracts.evaluator import Batch, Predictions, Subject
from m3djax.contracts.share import Share
from m3djax.evaluate.answers.answerers import Answerer
from m3djax.evaluate.answers.asking import QuestionedCrop
from m3djax.evaluate.answers.table import AnswerTable, Row

log = logging.getLogger(__name__)
_FIELDS = ("image", "scale", "offset")


@dataclasses.dataclass(frozen=True, eq=False)
class Questioned:
    """Crops with their questions as samples; crops with unanswered questions come first.

    Attributes:
      crops: function from a slice of crop numbers to these crops with their questions.
      per_record: crops per record.
      table: the answers so far.
    """

    crops: Callable[[slice], Iterable[QuestionedCrop]]
    per_record: int
    table: AnswerTable

    def batches(self, share: Share) -> Iterator[Batch]:
        """Yields batches of one process: image, scale, offset, and "questions", a list per crop."""
        waiting: list[QuestionedCrop] = []
        answered: list[QuestionedCrop] = []
        for one in self.crops(slice(share.process, None, share.processes)):
            some = waiting if self.table.missing(one.rows) else answered
            some.append(one)
            if len(some) == share.batch_size:
                yield self._batch(some, share.batch_size)
                some.clear()
        for some in filter(None, (waiting, answered)):
            yield self._batch(some, share.batch_size)

    def _batch(self, crops: Sequence[QuestionedCrop], size: int) -> Batch:
        # Filled to a fixed size, so that the model is compiled once.
        samples = [crops[number % len(crops)].sample for number in range(size)]
        questions = np.full(size, None)
        for row, one in enumerate(crops):
            questions[row] = one.rows
        numbers = [int(one["record"]) * self.per_record + int(one["crop"]) for one in samples]
        return {
            **{name: np.stack([one[name] for one in samples]) for name in _FIELDS},
            "number": np.array(numbers),
            "counts": np.arange(size) < len(crops),
            "questions": questions,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Respondent(Subject):
    """A model that answers questions, with its answers so far.

    Attributes:
      load: function that makes the answering model; called only if a question is unanswered.
      table: the answers so far; every new answer is added.
    """

    load: Callable[[], Answerer]
    table: AnswerTable

    @functools.cached_property
    def answerer(self) -> Answerer:
        """Returns the answering model."""
        return self.load()


def answer(respondent: Respondent, batch: Batch, at_once: int) -> Predictions:
    """Answers the questions without an answer in the table; returns the answers per crop as JSON.

    Args:
      respondent: the model.
      batch: crops with their questions.
      at_once: answers that are generated as one batch.
    """
    asked = [rows or [] for rows in batch["questions"]]
    table = respondent.table
    rows = [(number, row) for number, some in enumerate(asked) for row in table.missing(some)]
    if rows:
        _ask(respondent, batch, rows, at_once)
    said = [[dataclasses.asdict(table.rows[row.key]) for row in some] for some in asked]
    return {"answers": np.array([json.dumps(some) for some in said])}


def read_answers(predictions: Predictions) -> list[Row]:
    """Returns all answers, in the order of the crops."""
    crops = map(json.loads, predictions.get("answers", ()))
    return [Row.from_json(fields) for some in crops for fields in some]


def _ask(respondent: Respondent, batch: Batch, rows: list[tuple[int, Row]], at_once: int) -> None:
    """Asks the questions about a batch of crops, `at_once` at a time."""
    # A batch of answers takes as long as its longest answer, so questions of a kind go together.
    rows.sort(key=lambda numbered: numbered[1].kind)
    answerer, table = respondent.answerer, respondent.table
    seen = answerer.look({name: batch[name] for name in _FIELDS})
    for first in range(0, len(rows), at_once):
        about, part = zip(*rows[first : first + at_once], strict=True)
        answers = answerer.answer(seen, part, about)
        table.add(
            dataclasses.replace(row, said=answer.text.strip(), ended=answer.ended)
            for row, answer in zip(part, answers, strict=True)
        )
    log.info("%d questions answered", len(table.rows))
