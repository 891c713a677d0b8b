"""Questions and answers of a record: what they are, and how they are stored."""

from __future__ import annotations

import dataclasses
import json
import string
from collections.abc import Iterator, Sequence

from data_pipelines.caption import Question
from data_pipelines.text.reports import is_missing

TOPICS = {1: "plane", 2: "phase", 3: "organ", 4: "abnormality", 5: "location"}
"""M3D-VQA's types of questions."""
KINDS = ("closed", "open", "yes_no")


@dataclasses.dataclass(frozen=True)
class Row:
    """One question of a table with its answer.

    Attributes:
      question: As it is put.
      answer: In words, without a letter.
      choices: What can be chosen; () if nothing.
      topic: What it is about: one of `TOPICS`, or "".
      yes_no: Whether it can be answered by yes or no.
      splits: Released splits that hold it; rows that differ in nothing else are one.
    """

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    topic: str = ""
    yes_no: bool = False
    splits: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def questions(self) -> Iterator[Question]:
        """With its choices, if it has some, and without them."""
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
    """A question with its choices, as M3D writes them.

    Raises:
      ValueError: a choice is missing, as "NA" in a table.
    """
    if any(map(is_missing, choices)):
        raise ValueError(f"a choice is missing: {choices}")
    told = " ".join(
        f"{a}. {text}" for a, text in zip(string.ascii_uppercase, choices, strict=False)
    )
    return f"{question} Choices: {told}"


def to_text(rows: Sequence[Row]) -> str:
    """Rows as JSON, for the field `qa` of a record; "" for none."""
    return json.dumps([dataclasses.asdict(row) for row in rows]) if rows else ""


def from_text(text: str) -> list[Row]:
    """What `to_text` wrote."""
    return [
        Row(**row | {name: tuple(row[name]) for name in ("choices", "splits")})
        for row in json.loads(text or "[]")
    ]
