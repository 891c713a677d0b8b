"""The findings of an evaluator, in one form for the screen, results.json and the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipelines.errors import UserError


class EvaluationError(UserError, RuntimeError):
    """An error of an evaluator that does not fit the run or the data. It says what to change."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of formatted text.

    Attributes:
      title: title of the table.
      columns: column headings; the first column names the rows.
      rows: cells; each row is as long as `columns`.
      note: units and the meaning of the intervals.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG in the evaluator's folder.

    Attributes:
      file: name of the file in that folder.
      caption: description of the picture.
    """

    file: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Findings:
    """The results of an evaluator: numbers for programs, and text and pictures for people.

    Attributes:
      title: heading of the section in the report.
      numbers: values that JSON can hold; plain floats at the top level become training curves.
      sentences: the result in plain words.
      tables: shown on screen and in the report.
      pictures: shown in the report.
      caveats: limits of the numbers.
      passed: False if the run fails the evaluator's test; None if the evaluator has no test.
    """

    title: str
    numbers: Mapping[str, Any]
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    caveats: tuple[str, ...] = ()
    passed: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers at the top level, and the rest below "report" and "passed"."""
        report = {
            "title": self.title,
            "sentences": self.sentences,
            "tables": [dataclasses.asdict(table) for table in self.tables],
            "pictures": [dataclasses.asdict(picture) for picture in self.pictures],
            "caveats": self.caveats,
        }
        return {**self.numbers, "passed": self.passed, "report": report}
