"""What an evaluator found, in the one form that the screen, results.json and the report share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipelines.errors import UserError


class EvaluationError(UserError, RuntimeError):
    """An evaluator that does not fit the run or the data; says what to change."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of finished text.

    Attributes:
      title: what it shows.
      columns: heads; the first column names the rows.
      rows: cells, as long as `columns`.
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
      file: its name there.
      caption: what is seen.
    """

    file: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Findings:
    """Numbers for programs, and what people read.

    Attributes:
      title: heads the section of the report.
      numbers: JSON-able; plain floats at the top level become training curves.
      sentences: the result in plain words.
      tables: shown on screen and in the report.
      pictures: shown in the report.
      caveats: what the numbers do not say.
      passed: False if the run fails the evaluator's test; None if it has none.
    """

    title: str
    numbers: Mapping[str, Any]
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    caveats: tuple[str, ...] = ()
    passed: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The numbers at the top level, the rest below "report" and "passed"."""
        report = {
            "title": self.title,
            "sentences": self.sentences,
            "tables": [dataclasses.asdict(table) for table in self.tables],
            "pictures": [dataclasses.asdict(picture) for picture in self.pictures],
            "caveats": self.caveats,
        }
        return {**self.numbers, "passed": self.passed, "report": report}
