"""The picture of a session: the places of replies on slices of the scans."""

from __future__ import annotations

import dataclasses
import io
import textwrap
import warnings
from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from data_pipelines.errors import printable
from data_pipelines.files import write_whole
from data_pipelines.planes import ANATOMICAL, AS_STORED, BACKGROUND, TEXT, Plane, draw_plane
from data_pipelines.plausible import SortedSample
from data_pipelines.preprocess import Orientation, boxes_from_source
from data_pipelines.volume import Volume
from m3djax.ask.field_of_view import FieldOfView
from m3djax.ask.session import Exchange
from m3djax.inputs.inputs import ScaleIntensityRange

NOTICE = "Software for research: not for clinical use."
MOST = 8
"""Largest number of rows of a picture."""
_WIDTH, _LINE, _FOOT, _TALLEST = 11.0, 0.2, 0.42, 4.5  # inches
_LETTERS, _LINES = 130, 3  # letters per line and lines of a title
_BOX, _FRAME = "#f2cc60", "#8b949e"


@dataclasses.dataclass(frozen=True)
class PictureRow:
    """Three planes through one place.

    Attributes:
      title: question and answer.
      fov: the field of view of the scan.
      box: (6,) half-open voxels of the file to mark; None: no box.
    """

    title: str
    fov: FieldOfView
    box: np.ndarray | None = None


def rows(fovs: Sequence[FieldOfView], exchanges: Sequence[Exchange]) -> list[PictureRow]:
    """Returns a row for every place of the replies; without places, a row for every scan.

    Args:
      fovs: the fields of view of the session's scans.
      exchanges: the questions and replies.
    """
    titles = [f"{one.question}  >  {one.reply.text.strip()}" for one in exchanges]
    placed = [
        PictureRow(title, fovs[0], place.voxels)
        for title, one in zip(titles, exchanges, strict=True)
        for place in one.reply.places
    ]
    text = "; ".join(titles) or "Field of view of the model"
    several = len(fovs) > 1
    return placed or [
        PictureRow(f"{fov.scan.source}: {text}" if several else text, fov) for fov in fovs
    ]


def draw(path: epath.PathLike, rows: Sequence[PictureRow], window: ScaleIntensityRange) -> None:
    """Writes a PNG, atomically: the scan in three planes, a row for each box.

    The planes go through the centre of the box, or of the field of view without a box. A dashed
    frame shows the field of view. Volumes in HU are shown in the network's window, others from
    their percentile 1 to 99.

    Args:
      path: path of the PNG.
      rows: at least one row; the last `MOST` are drawn.
      window: intensity range of the network, in HU.
    """
    shown = [_Shown.of(row) for row in rows[-MOST:]]
    heights = [one.height() + _LINE * (one.title.count("\n") + 1) for one in shown]
    total = sum(heights) + _FOOT
    figure = Figure((_WIDTH, total), facecolor=BACKGROUND)
    top = total
    for one, height in zip(shown, heights, strict=True):
        figure.text(0.01, (top - 0.05) / total, one.title, color=TEXT, fontsize=9, va="top")
        one.draw(figure, (top - height, top - height + one.height()), total, _limits(one, window))
        top -= height
    more = f" The last {MOST} of {len(rows)} places are shown." if len(rows) > MOST else ""
    note = (
        f"{NOTICE} Yellow: the box of the answer; dashed: the model's field of view; "
        f"[:, n, :]: the slice, in voxels of the file.{more}"
    )
    figure.text(0.01, 0.12 / total, note, color=TEXT, fontsize=8)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font lacks letters of some languages
        figure.savefig(file, format="png", dpi=110, facecolor=BACKGROUND)
    write_whole(path, file.getvalue())


@dataclasses.dataclass(frozen=True, eq=False)
class _Shown:
    """A row with its scan in radiological orientation.

    Attributes:
      title: the title, wrapped into lines.
      volume: the scan.
      planes: the planes of the scan.
      frame: (6,) the field of view, in voxels of `volume`.
      box: (6,) the box to mark, in voxels of `volume`.
    """

    title: str
    volume: Volume
    planes: tuple[Plane, ...]
    frame: np.ndarray
    box: np.ndarray | None

    @classmethod
    def of(cls, row: PictureRow) -> _Shown:
        volume, planes = row.fov.scan, AS_STORED
        if volume.affine is not None:
            volume, planes = Orientation()(volume), ANATOMICAL
        box = None if row.box is None else boxes_from_source(row.box, volume)[0]
        text = textwrap.wrap(printable(" ".join(row.title.split())), _LETTERS)
        text = [*text[:_LINES], *(["..."] if len(text) > _LINES else [])]
        title = "\n".join(text).replace("$", r"\$")  # "$" would start a formula
        return cls(title, volume, planes, boxes_from_source(row.fov.frame(), volume)[0], box)

    def _extent(self) -> np.ndarray:
        return np.multiply(self.volume.shape, self.volume.spacing or (1.0, 1.0, 1.0))

    def _scale(self) -> float:
        """Returns inches per mm: the planes fill the width, or are `_TALLEST` inches high."""
        sides = [np.delete(self._extent(), plane.axis) for plane in self.planes]
        widest, tallest = sum(columns for _, columns in sides), max(rows for rows, _ in sides)
        return min((_WIDTH - 0.4) / widest, _TALLEST / tallest)

    def height(self) -> float:
        """Returns the height of the planes in inches."""
        rows = [np.delete(self._extent(), plane.axis)[0] for plane in self.planes]
        return max(float(max(rows)) * self._scale(), 0.8) + 0.1

    def draw(
        self,
        figure: Figure,
        between: tuple[float, float],
        total: float,
        limits: tuple[float, float],
    ) -> None:
        """Draws the planes between two heights (inches) of a figure of `total` inches."""
        spacing = np.array(self.volume.spacing or (1.0, 1.0, 1.0))
        middle = (self.frame if self.box is None else self.box).reshape(2, 3).mean(0)
        at = np.clip(np.floor(middle).astype(int), 0, np.array(self.volume.shape) - 1)
        left = 0.1
        low, high = between
        for plane in self.planes:
            width = float(np.delete(self._extent(), plane.axis)[1]) * self._scale()
            place = (
                left / _WIDTH,
                (low + 0.05) / total,
                width / _WIDTH,
                (high - low - 0.1) / total,
            )
            axes = figure.add_axes(place)
            index = int(at[plane.axis])
            draw_plane(axes, plane, self.volume, index, np.delete(spacing, plane.axis), limits)
            label = f"{plane.name} {_slice_of_file(self.volume, plane.axis, index)}"
            axes.text(0.02, 0.03, label, color=TEXT, fontsize=6, transform=axes.transAxes)
            _mark(axes, plane, self.frame, index, _FRAME, style="--")
            if self.box is not None:
                _mark(axes, plane, self.box, index, _BOX)
            left += width + 0.1


def _mark(
    axes: Axes, plane: Plane, box: np.ndarray, index: int, colour: str, style: str = "-"
) -> None:
    """Draws the outline of a box if the slice cuts it."""
    low, high = box.reshape(2, 3)
    if not low[plane.axis] <= index + 0.5 <= high[plane.axis]:
        return
    (y, x), (bottom, right) = np.delete(low, plane.axis), np.delete(high, plane.axis)
    # Half-open voxel numbers are faces; pixels are drawn around their centres.
    corner = (x - 0.5, y - 0.5)
    axes.add_patch(
        Rectangle(corner, right - x, bottom - y, fill=False, edgecolor=colour, linestyle=style)
    )


def _slice_of_file(volume: Volume, axis: int, index: int) -> str:
    """Returns the index of a slice in the file, in NumPy's notation: "[:, 12, :]".

    A slice through a sheared file that is no slice of the file gets no index.
    """
    across = np.linalg.inv(volume.to_source)[axis]  # index = across[:3] @ voxel + across[3]
    steps = np.rint(across[:3])
    if np.count_nonzero(steps) != 1 or not np.allclose(across[:3], steps, atol=1e-3):
        return ""
    number = round(float((index - across[3]) / across[:3].sum()))
    return f"[{', '.join(str(number) if step else ':' for step in steps)}]"


def _limits(shown: _Shown, window: ScaleIntensityRange) -> tuple[float, float]:
    if shown.volume.units == "HU":
        return window.a_min, window.a_max
    sample = SortedSample.of(shown.volume)
    return sample.percentile(1), sample.percentile(99)
