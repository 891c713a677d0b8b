"""Questions and answers of a record, and their storage as JSON."""

from __future__ import annotations

import dataclasses
import json
import string
from collections.abc import Iterator, Sequence

from data_pipelines.caption import Question
from data_pipelines.text.reports import is_missing

TOPICS = {1: "plane", 2: "phase", 3: "organ", 4: "abnormality", 5: "location"}
"""M3D-VQA's types of questions: number in its tables, and name."""
KINDS = ("closed", "open", "yes_no")


@dataclasses.dataclass(frozen=True)
class QuestionRow:
    """One question of a table with its answer.

    Attributes:
      question: text of the question.
      answer: text of the answer, without a letter.
      choices: choices of the question; () if it has none.
      topic: topic of the question: one of `TOPICS`, or "".
      yes_no: whether the answer is yes or no.
      splits: released splits that have this row. Rows that differ only in this are equal.
    """

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    topic: str = ""
    yes_no: bool = False
    splits: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def questions(self) -> Iterator[Question]:
        """Yields the question with its choices, if any, and the question without choices."""
        meaning = f"{self.question} {self.answer}"
        if self.yes_no:
            yield Question(self.answer, meaning, self.question, "yes_no", self.topic)
            return
        if self.choices:
            letter = string.ascii_uppercase[self.choices.index(self.answer)]
            asked = with_choices(self.question, self.choices)
            answer = f"{letter}. {self.answer}"
            yield Question(answer, meaning, asked, "closed", self.topic, self.choices)
        yield Question(self.answer, meaning, self.question, "open", self.topic)


def with_choices(question: str, choices: Sequence[str]) -> str:
    """Returns a question with its choices, in M3D's format.

    Raises:
      ValueError: a choice is missing, such as "NA" in a table.
    """
    if any(map(is_missing, choices)):
        raise ValueError(f"a choice is missing: {choices}")
    told = " ".join(
        f"{a}. {text}" for a, text in zip(string.ascii_uppercase, choices, strict=False)
    )
    return f"{question} Choices: {told}"


def to_text(rows: Sequence[QuestionRow]) -> str:
    """Returns rows as JSON, for the field `qa` of a record; "" for no rows."""
    return json.dumps([dataclasses.asdict(row) for row in rows]) if rows else ""


def from_text(text: str) -> list[QuestionRow]:
    """Returns the rows of a text from `to_text`."""
    return [
        QuestionRow(**row | {name: tuple(row[name]) for name in ("choices", "splits")})
        for row in json.loads(text or "[]")
    ]
