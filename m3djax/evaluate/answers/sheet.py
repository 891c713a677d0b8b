"""A picture of crops: a slice with true boxes and boxes of answers, and the answers as text."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from data_pipelines import boxes
from data_pipelines.boxes import Box, read_box
from data_pipelines.errors import printable
from data_pipelines.stream import Arrays
from m3djax.contracts.findings import Picture
from m3djax.evaluate.answers.numbers import Kind
from m3djax.evaluate.pictures import BACKGROUND, TEXT
from m3djax.inputs.inputs import ScaleIntensityRange

FILE = "answers.png"
_TRUE, _WRONG, _DIM = "#3fb950", "#f85149", "#8b949e"
_COLOURS = ("#d29922", "#58a6ff", "#bc8cff", "#ff7b72")  # of the models
_RIGHT_OR_WRONG = ("accuracy", "exact")
_WIDTH, _ROW, _IMAGE = 11.0, 0.155, 2.6  # inches: page, line of text, slice
_LETTERS = 118  # letters per line of text
_BOXES = (
    " The slice goes through the middle of the green box: the true box, or the box in the "
    "question. Boxes in answers have the colours of their models. They are dashed if they are "
    "above or below the slice."
)
_QUESTIONS = 3  # questions per crop, or one of each kind if there are more kinds


def draw(
    crops: Sequence[Arrays], kinds: Sequence[Kind], window: ScaleIntensityRange, folder: epath.Path
) -> tuple[Picture, ...]:
    """Writes a PNG into `folder`, and returns it with its caption.

    It shows up to three questions about each crop, and at least one of each kind.

    Args:
      crops: fields of `Data.eval_batches` without the batch axis.
      kinds: questions and answers.
      window: values shown as black and white.
      folder: folder of the PNG.
    """
    shown = [_questions(crop, kinds) for crop in crops]
    lines = [[line for kind, number in some for line in _lines(kind, number)] for some in shown]
    heights = [max(_IMAGE, _ROW * (len(some) + 1)) for some in lines]
    figure = Figure((_WIDTH, sum(heights)), facecolor=BACKGROUND)
    grid = figure.add_gridspec(
        len(crops), 2, width_ratios=(_IMAGE, _WIDTH - _IMAGE), height_ratios=heights,
        left=0.01, right=0.99, top=0.99, bottom=0.01, hspace=0.04, wspace=0.03,
    )  # fmt: skip
    drawn = [next(filter(None, (_boxes(*one) for one in some)), {}) for some in shown]
    for row, (crop, found, text) in enumerate(zip(crops, drawn, lines, strict=True)):
        _slice(figure.add_subplot(grid[row, 0]), crop, found, window)
        cell = figure.add_subplot(grid[row, 1])
        cell.set_axis_off()
        for number, (words, colour) in enumerate(text):
            place = 1 - (number + 0.7) * _ROW / heights[row]
            cell.text(0, place, words, color=colour, fontsize=8, transform=cell.transAxes)
    with (folder / FILE).open("wb") as file:
        figure.savefig(file, format="png", dpi=120, facecolor=BACKGROUND)
    caption = (
        "Crops with questions of each kind: right answers are green, wrong ones red. The patient's "
        "right is on the left."
    )
    return (Picture(FILE, caption + (_BOXES if any(drawn) else "")),)


def _questions(crop: Arrays, kinds: Sequence[Kind]) -> list[tuple[Kind, int]]:
    """Returns the first questions of each kind about a crop: the kind, and the number within it."""
    key = int(crop["record"]), int(crop["crop"])
    each = max(1, _QUESTIONS // len(kinds))
    found = []
    for kind in kinds:
        numbers = (number for number, row in enumerate(kind.rows) if row.key[:2] == key)
        found += [(kind, number) for number in itertools.islice(numbers, each)]
    return found


def _lines(kind: Kind, number: int) -> list[tuple[str, str]]:
    """Returns question, right answer and all answers as lines of text with their colours."""
    row = kind.rows[number]
    lines = [*_wrapped(row.question, TEXT), *_wrapped(f"right: {row.truth}", _DIM)]
    for place, (model, rows) in enumerate(kind.answers.items()):
        colour = _COLOURS[place % len(_COLOURS)] if kind.main == "iou" else TEXT
        if kind.main in _RIGHT_OR_WRONG:
            right = kind.scores[model][kind.main]
            colour = _TRUE if right[number] else _WRONG
        said = rows[number].said or "(nothing)"
        lines += _wrapped(f"{model}: {said}{_verdict(kind, model, number)}", colour)
    return [*lines, ("", TEXT)]


def _verdict(kind: Kind, model: str, number: int) -> str:
    """Returns the text after an answer: its IoU or its ROUGE-1, or ""."""
    value = kind.scores[model].get(kind.main, np.full(len(kind.rows), np.nan))[number]
    if kind.main in _RIGHT_OR_WRONG or np.isnan(value):
        return ""
    return f"  ({'IoU' if kind.main == 'iou' else 'ROUGE-1'} {value:.2f})"


def _wrapped(text: str, colour: str) -> list[tuple[str, str]]:
    # "$" would start a formula.
    text = text.replace(boxes.START, "").replace(boxes.END, "")
    text = printable(" ".join(text.split())).replace("$", r"\$")
    text = textwrap.shorten(text, 3 * _LETTERS, placeholder=" ...")
    return [(line, colour) for line in textwrap.wrap(text, _LETTERS)]


def _boxes(kind: Kind, number: int) -> dict[str, Box]:
    """Returns colour -> box: the true box (or the box in the question), and those of models."""
    row = kind.rows[number]
    texts = {_TRUE: row.truth if read_box(row.truth) is not None else row.question}
    for place, rows in enumerate(kind.answers.values()):
        texts.setdefault(_COLOURS[place % len(_COLOURS)], rows[number].said)
    found = {colour: read_box(text) for colour, text in texts.items()}
    return {colour: box for colour, box in found.items() if box is not None}


def _slice(cell: Axes, crop: Arrays, drawn: Mapping[str, Box], window: ScaleIntensityRange) -> None:
    """Draws an axial slice, through the middle of the true box if there is one."""
    image: Float[np.ndarray, "d h w"] = crop["image"][..., 0] * crop["scale"] + crop["offset"]
    depth, height, width = image.shape
    middle = (drawn[_TRUE][0] + drawn[_TRUE][3]) / 2 if _TRUE in drawn else 0.5
    index = min(int(middle * depth), depth - 1)
    _, tall, wide = crop["spacing"] if all(crop["spacing"]) else (1, 1, 1)
    cell.imshow(
        image[index], cmap="gray", vmin=window.a_min, vmax=window.a_max, aspect=tall / wide,
        extent=(0, width, height, 0),
    )  # fmt: skip
    for colour, box in drawn.items():
        low, high = box[:3] * image.shape, box[3:] * image.shape
        inside = low[0] <= index + 0.5 <= high[0]
        cell.add_patch(
            Rectangle(
                (low[2], low[1]),
                high[2] - low[2],
                high[1] - low[1],
                fill=False,
                edgecolor=colour,
                linewidth=4 if colour == _TRUE else 1.6,  # an answer's box may cover the true one
                linestyle="-" if inside else "--",
            )
        )
    cell.set_xticks([])
    cell.set_yticks([])
    cell.set_anchor("N")
    name = f"record {int(crop['record'])}, crop {int(crop['crop'])}, slice {index}"
    cell.text(0.02, 0.02, name, color=TEXT, fontsize=6, transform=cell.transAxes)
