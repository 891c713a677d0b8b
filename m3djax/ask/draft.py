"""The draft of a report, with a statement of its origin."""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath

from data_pipelines.errors import printable
from data_pipelines.files import write_whole
from m3djax.ask.describe import about_places, describe
from m3djax.ask.field_of_view import FieldOfView
from m3djax.ask.picture import NOTICE
from m3djax.ask.session import Exchange


def write(path: epath.PathLike, exchange: Exchange, fovs: Sequence[FieldOfView], run: str) -> None:
    """Writes the draft, atomically.

    Args:
      path: path of the text file.
      exchange: the request for a report, and the reply.
      fovs: the fields of view of the scans.
      run: name of the model.
    """
    text = exchange.reply.text.strip()
    if exchange.reply.ended == "length":
        text += "\n\n[The answer was cut off here. Increase --sampling.max-new-tokens for more.]"
    boxes = list(about_places(exchange.reply))
    lines = [
        "# DRAFT of findings, written by a model",
        f"{NOTICE} No person has checked this text.",
        "\n".join(f"- {line}" for fov in fovs for line in describe(fov)),
        f"- model: {printable(run)}\n- asked: {printable(exchange.question)}",
        "## Findings",
        text,
        *(["## Boxes", "\n".join(f"- {line}" for line in boxes)] if boxes else []),
        NOTICE,
    ]
    write_whole(path, "\n\n".join(lines) + "\n")
