"""Captions and questions of a sample: the contract between text sources and tokenizers."""

from __future__ import annotations

import dataclasses
import string


@dataclasses.dataclass(frozen=True)
class Caption:
    """A text about a sample.

    Attributes:
      text: The text itself.
      meaning: A key that is equal for two captions with the same meaning, however they are worded.
      question: The question that `text` answers; "" if there is none.
    """

    text: str
    meaning: str
    question: str = ""


@dataclasses.dataclass(frozen=True)
class Question(Caption):
    """A question with its correct answer, `text`.

    Attributes:
      kind: Kind of question, such as "yes_no".
      label: Name of the label in question, or a topic such as M3D's "plane"; "" for none.
      choices: Answers to choose from, in the order of the letters A, B, ...; () for an open
        question.
      later: Next questions about the same volume; see `instructions.Conversation`.
    """

    kind: str = ""
    label: str = ""
    choices: tuple[str, ...] = ()
    later: tuple[Question, ...] = ()

    @property
    def lettered(self) -> dict[str, str]:
        """Returns {letter: choice}."""
        return dict(zip(string.ascii_uppercase, self.choices, strict=False))

    @property
    def form(self) -> str:
        """Returns "choice" if there are choices, else the kind, or "report" if that is empty."""
        return "choice" if self.choices else self.kind or "report"
