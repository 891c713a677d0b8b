"""Enumeration of all questions about the crops of a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from data_pipelines.caption import Question
from data_pipelines.captions import View
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.stream import Arrays
from m3djax.evaluate.answers.table import Row


@runtime_checkable
class Enumerates(Protocol):
    """A source of captions that can enumerate all questions about a crop."""

    def every(self, view: View) -> list[Question]:
        """Returns all questions about a crop, in fixed order and wording."""


@dataclasses.dataclass(frozen=True, eq=False)
class QuestionedCrop:
    """A crop with its questions.

    Attributes:
      sample: fields of `Data.eval_batches`, without the batch axis.
      rows: the questions, not yet answered.
    """

    sample: Arrays
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
    """Yields the crops that have questions; every call yields the same.

    Args:
      data: config of crops and questions; the source of its text enumerates questions.
      source: dataset, split and part.
      crops: crops per record.
      seed: seed of the places of crops and of the drawn questions.
      per_crop: questions of each kind about a crop, drawn at random; 0: all questions.
      part: slice of the crops to yield, by their number among all crops.

    Raises:
      ConfigError: the data has no text.
      DataError: the dataset cannot be read.
    """
    asking = data.field("text", Text).source
    assert isinstance(asking, Enumerates)
    for sample, view in data.eval_crops(source, crops, seed, part):
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
    """Returns the sorted numbers of up to `most` random questions of each kind; 0: of all."""
    if not most:
        return list(range(len(kinds)))
    left: Mapping[str, list[int]] = {kind: [] for kind in kinds}
    for number in rng.permutation(len(kinds)).tolist():
        if len(left[kinds[number]]) < most:
            left[kinds[number]].append(number)
    return sorted(number for numbers in left.values() for number in numbers)
