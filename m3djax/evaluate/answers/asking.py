"""Every question that can be asked about the crops of a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from data_pipelines.caption import Question
from data_pipelines.captions import View
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Batch, Data, Source
from m3djax.evaluate.answers.table import Row


@runtime_checkable
class Enumerates(Protocol):
    """A source of captions that can tell all questions about a crop."""

    def every(self, view: View) -> list[Question]:
        """All of them, in fixed order and wording."""


@dataclasses.dataclass(frozen=True, eq=False)
class QuestionedCrop:
    """A crop with its questions.

    Attributes:
      sample: fields of `Data.examine`, without the batch axis.
      rows: the questions, not yet answered.
    """

    sample: Batch
    rows: list[Row]


def asked(
    data: Data,
    source: Source,
    *,
    crops: int = 1,
    seed: int = 0,
    per_crop: int = 0,
    part: slice = slice(None),
) -> Iterator[QuestionedCrop]:
    """Yields the crops about which there is something to ask, the same every time.

    Args:
      data: how crops are cut, and what is asked: its text's source enumerates questions.
      source: dataset, split and part.
      crops: crops of every record.
      seed: where they are cut.
      per_crop: questions of each kind about a crop, drawn at random; 0 takes all.
      part: which crops to yield, by their number among all crops.

    Raises:
      ConfigError: the data has no text.
      DataError: the dataset cannot be read.
    """
    asking = data.field("text", Text).source
    assert isinstance(asking, Enumerates)
    for sample, view in data.views(source, crops, seed, part):
        record, crop = int(sample["record"]), int(sample["crop"])
        questions = asking.every(view)
        rng = np.random.default_rng((seed, record, crop, 1))
        numbers = _drawn([q.form for q in questions], per_crop, rng)
        d, h, w = (int(voxel) for voxel in sample["place"])
        rows = [_row(questions[n], n, record, crop, (d, h, w)) for n in numbers]
        if rows:
            yield QuestionedCrop(sample, rows)


def _row(
    question: Question, number: int, record: int, crop: int, place: tuple[int, int, int]
) -> Row:
    return Row(
        record, crop, number, place, question.form, question.label, question.question,
        question.lettered, question.text,
    )  # fmt: skip


def _drawn(kinds: Sequence[str], most: int, rng: np.random.Generator) -> list[int]:
    """Numbers of at most so many questions of each kind, in their order."""
    if not most:
        return list(range(len(kinds)))
    left: Mapping[str, list[int]] = {kind: [] for kind in kinds}
    for number in rng.permutation(len(kinds)).tolist():
        if len(left[kinds[number]]) < most:
            left[kinds[number]].append(number)
    return sorted(number for numbers in left.values() for number in numbers)
