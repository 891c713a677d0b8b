"""Pictures of queries: volumes with their five nearest captions, and captions with volumes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Bool, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipelines.errors import printable
from data_pipelines.text.base import Tokens
from m3djax.contracts.findings import Picture
from m3djax.evaluate.pictures import BACKGROUND, TEXT
from m3djax.evaluate.retrieval.pairs import Pairs

_BEST = 5
_RIGHT, _WRONG = "#3fb950", "#f85149"
_LETTERS = 240  # letters of a caption in a picture
_WIDTH, _ROW = 11.0, 1.9  # inches


def draw(
    pairs: Pairs, rows: Int[np.ndarray, " q"], tokens: Tokens, pool: str, folder: epath.Path
) -> list[Picture]:
    """Writes two PNGs into `folder`, and returns them with their captions.

    Args:
      pairs: the pool.
      rows: rows of the queries.
      tokens: tokenizer that decodes captions.
      pool: name of the pool.
      folder: folder of the PNGs.
    """
    said = f"pool {pool}, {len(pairs):,} samples; green is right, red is wrong"
    # A caption that several samples share is shown once.
    different = np.sort(np.unique(pairs.text_id, return_index=True)[1])
    captions = different[_nearest(pairs.images[rows], pairs.texts[different])]
    sheets = {
        "volumes.png": (captions, _captions_of_volume),
        "captions.png": (_nearest(pairs.texts[rows], pairs.images), _volumes_of_caption),
    }
    for name, (found, fill) in sheets.items():
        figure = Figure((_WIDTH, _ROW * len(rows)), facecolor=BACKGROUND)
        grid = figure.add_gridspec(len(rows), _BEST + 1, left=0.01, right=0.99, top=0.97,
                                   bottom=0.03, hspace=0.12, wspace=0.06)  # fmt: skip
        for line, (row, answers) in enumerate(zip(rows, found, strict=True)):
            right = pairs.text_id[answers] == pairs.text_id[row]
            cells = [figure.add_subplot(grid[line, n]) for n in range(_BEST + 1)]
            fill(cells, pairs, int(row), answers, right, tokens)
        with (folder / name).open("wb") as file:
            figure.savefig(file, format="png", dpi=110, facecolor=BACKGROUND)
    return [
        Picture(
            "volumes.png",
            f"Volumes and the different captions that are nearest for the model ({said}).",
        ),
        Picture("captions.png", f"Captions and the volumes that are nearest for it ({said})."),
    ]


def _nearest(queries: np.ndarray, candidates: np.ndarray) -> Int[np.ndarray, "q best"]:
    """Returns the most similar candidates of every query, the best first."""
    return np.argsort(-(queries @ candidates.T), axis=1, kind="stable")[:, :_BEST]


def _captions_of_volume(
    cells: Sequence[Axes],
    pairs: Pairs,
    row: int,
    answers: Int[np.ndarray, " best"],
    right: Bool[np.ndarray, " best"],
    tokens: Tokens,
) -> None:
    _image(cells[0], pairs, row, TEXT)
    for cell in cells[1:]:
        _empty(cell)
    for number, answer in enumerate(answers):
        colour = _RIGHT if right[number] else _WRONG
        text = textwrap.shorten(_caption(pairs, answer, tokens), _LETTERS // 2, placeholder=" ...")
        _line(cells[1], number + 1, f"{number + 1}.  {text}", colour)
    own = textwrap.shorten(_caption(pairs, row, tokens), _LETTERS // 2, placeholder=" ...")
    _line(cells[1], 0, f"its own:  {own}", TEXT)


def _volumes_of_caption(
    cells: Sequence[Axes],
    pairs: Pairs,
    row: int,
    answers: Int[np.ndarray, " best"],
    right: Bool[np.ndarray, " best"],
    tokens: Tokens,
) -> None:
    for cell in (cells[0], *cells[len(answers) + 1 :]):
        _empty(cell)
    text = textwrap.shorten(_caption(pairs, row, tokens), _LETTERS, placeholder=" ...")
    cells[0].text(0.0, 0.5, textwrap.fill(text, 30), color=TEXT, fontsize=7, va="center",
                  transform=cells[0].transAxes)  # fmt: skip
    for cell, answer, fine in zip(cells[1:], answers, right, strict=False):
        _image(cell, pairs, int(answer), _RIGHT if fine else _WRONG)


def _image(cell: Axes, pairs: Pairs, row: int, colour: str) -> None:
    cell.imshow(pairs.middle[row], cmap="gray", vmin=0, vmax=255)
    cell.set_xticks([])
    cell.set_yticks([])
    for side in cell.spines.values():
        side.set(color=colour, linewidth=2)
    name = f"record {pairs.record[row]}, crop {pairs.crop[row]}"
    cell.text(0.02, 0.03, name, color=TEXT, fontsize=6, transform=cell.transAxes)


def _line(cell: Axes, number: int, text: str, colour: str) -> None:
    """Draws one of several lines of text, over the width of all cells to the right."""
    cell.text(0.0, 1 - (number + 0.5) / (_BEST + 1), text, color=colour, fontsize=8, va="center",
              transform=cell.transAxes)  # fmt: skip


def _empty(cell: Axes) -> None:
    cell.set_axis_off()


def _caption(pairs: Pairs, row: int, tokens: Tokens) -> str:
    # "$" would start a formula.
    text = tokens.decode(pairs.token_ids[row][pairs.attention_mask[row]].tolist())
    return printable(" ".join(text.split())).replace("$", r"\$")
