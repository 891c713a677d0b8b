"""A draft of a report, as text that says what it is."""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath

from data_pipelines.errors import printable
from data_pipelines.files import write_whole
from m3djax.ask.conversation import Said
from m3djax.ask.describe import describe
from m3djax.ask.part import Part
from m3djax.ask.picture import NOTICE


def write(path: epath.PathLike, said: Said, parts: Sequence[Part], run: str) -> None:
    """Writes the draft, whole or not at all.

    Args:
      path: of the text file.
      said: the answer.
      parts: the scans that it is about.
      run: that gave it.
    """
    text = said.answer.text.strip()
    if said.answer.ended == "length":
        text += "\n\n[The answer was cut off here: a greater --sampling.max-new-tokens goes on.]"
    boxes = list(said.lines())
    lines = [
        "# DRAFT of findings, written by a model",
        f"{NOTICE} Nobody has checked a word of it.",
        "\n".join(f"- {line}" for part in parts for line in describe(part)),
        f"- model: {printable(run)}\n- asked: {printable(said.question)}",
        "## Findings",
        text,
        *(["## Boxes", "\n".join(f"- {line}" for line in boxes)] if boxes else []),
        NOTICE,
    ]
    write_whole(path, "\n\n".join(lines) + "\n")
