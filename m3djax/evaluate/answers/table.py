"""Questions with their answers in a file of JSON lines, which is kept after an interruption."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, Self

from etils import epath

from data_pipelines.files import write_whole


@dataclasses.dataclass(frozen=True)
class Row:
    """A question about a crop of a record, and its answer.

    Attributes:
      record: number of the record in the split.
      crop: number of the crop within the record.
      number: number of the question about that crop.
      place: voxel of the record at the centre of the crop.
      kind: kind of question, which decides the metrics; see `metrics.SCORERS`.
      type: type of question within its kind, such as "organ"; results are grouped by it.
      question: the question as the model gets it.
      choices: letter -> text; empty for a question without choices.
      truth: the right answer, as in training.
      said: the answer of the model.
      ended: reason for the end of the answer: "eos", "stop", or "length" if it was cut off.
    """

    record: int
    crop: int
    number: int
    place: tuple[int, int, int]
    kind: str
    type: str
    question: str
    choices: Mapping[str, str]
    truth: str
    said: str = ""
    ended: str = ""

    @property
    def key(self) -> tuple[int, int, int]:
        """Returns the identity of the question, the same for every model."""
        return self.record, self.crop, self.number

    def asks_like(self, other: Row) -> bool:
        """Returns whether both are the same question with the same right answer."""
        return dataclasses.replace(self, said="", ended="") == dataclasses.replace(
            other, said="", ended=""
        )

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Makes a row from JSON; the inverse of `dataclasses.asdict`."""
        return cls(**{**fields, "place": tuple(fields["place"])})


class AnswerTable:
    """Rows in files of JSON lines; a row that was cut short does not count.

    Every process appends to its own file, and reads the files of all processes at the start.
    """

    def __init__(self, file: epath.Path, others: Iterable[epath.Path] = ()) -> None:
        """Reads the existing rows, and removes a line that was cut short.

        Args:
          file: the file of this process; new rows are appended.
          others: files of other processes, which are only read.
        """
        self._file = file
        self.rows: dict[tuple[int, int, int], Row] = {}
        for each in {*others, file}:
            if each.exists():
                self._take(each)

    def _take(self, file: epath.Path) -> None:
        text = file.read_text()
        kept = []
        for line in text.splitlines(keepends=True):
            if (row := _read(line)) is not None:
                self.rows[row.key] = row
                kept.append(line)
        if file == self._file and "".join(kept) != text:
            write_whole(file, "".join(kept))

    def missing(self, asked: Iterable[Row]) -> list[Row]:
        """Returns the questions that have no answer in this table."""
        return [
            row for row in asked
            if row.key not in self.rows or not row.asks_like(self.rows[row.key])
        ]  # fmt: skip

    def add(self, rows: Iterable[Row]) -> None:
        """Appends answers to the file."""
        rows = list(rows)
        with self._file.open("a") as file:
            file.writelines(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)
        self.rows |= {row.key: row for row in rows}


def _read(line: str) -> Row | None:
    """Reads a row from a line; None if the line is not complete."""
    if not line.endswith("\n"):
        return None
    try:
        return Row.from_json(json.loads(line))
    except (ValueError, TypeError, KeyError):
        return None
