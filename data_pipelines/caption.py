"""What is said of a sample: the contract between sources of texts and tokenizers."""

from __future__ import annotations

import dataclasses
import string


@dataclasses.dataclass(frozen=True)
class Caption:
    """What is said of a sample.

    Attributes:
      text: The words.
      meaning: Equal for two captions that say the same, in whatever words.
      question: What they answer; "" if they answer nothing.
    """

    text: str
    meaning: str
    question: str = ""


@dataclasses.dataclass(frozen=True)
class Question(Caption):
    """A question whose answer, `text`, is certain.

    Attributes:
      kind: What sort of question it is, such as "yes_no".
      label: Name of the label that it is about, or a topic such as M3D's "plane"; "" for none.
      choices: What can be chosen, in the order of the letters A, B, ...; () if nothing.
      later: What is asked next about the same volume; see `instructions.Conversation`.
    """

    kind: str = ""
    label: str = ""
    choices: tuple[str, ...] = ()
    later: tuple[Question, ...] = ()

    @property
    def lettered(self) -> dict[str, str]:
        """{letter: choice}."""
        return dict(zip(string.ascii_uppercase, self.choices, strict=False))

    @property
    def form(self) -> str:
        """Its kind; "choice" for every kind that has choices, "report" if it has no name."""
        return "choice" if self.choices else self.kind or "report"
