"""A picture of one scan: three planes side by side, with the mask's outlines."""

from __future__ import annotations

import dataclasses

import matplotlib
import numpy as np
from etils import epath
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipelines.preprocess import Orientation
from data_pipelines.volume import NOT_LABELLED, Volume

BACKGROUND, TEXT = "#0d1117", "#e6edf3"
_WIDTH, _HEAD, _FOOT = 12.0, 0.35, 0.3  # inches
_MAX_HEIGHT = 12.0  # inches: a whole body is not drawn a metre high


@dataclasses.dataclass(frozen=True)
class Plane:
    """A cut through a (D, H, W) volume.

    Attributes:
      name: Of the plane.
      axis: Which it is perpendicular to.
      edges: Letters of its left, right, top and bottom; "" where nobody knows.
      upwards: Whether rows run up in the picture, as Superior does.
    """

    name: str
    axis: int
    edges: str
    upwards: bool = False


ANATOMICAL = (
    Plane("axial", 0, "RLAP"),
    Plane("coronal", 1, "RLSI", upwards=True),
    Plane("sagittal", 2, "APSI", upwards=True),
)
AS_STORED = (Plane("H x W", 0, ""), Plane("D x W", 1, ""), Plane("D x H", 2, ""))


def draw_planes(path: epath.PathLike, volume: Volume, window: tuple[float, float]) -> None:
    """Writes a PNG with an axial, a coronal and a sagittal plane, all at one scale.

    As radiologists look at them: the patient's right is on the left, superior is up, and the
    sagittal plane faces left. A volume without an affine is drawn as it is stored.

    Args:
      path: Of the PNG.
      volume: Of any orientation. The planes go through the middle of what its mask labels, or
        through its own.
      window: Values drawn black and white, in the volume's units.
    """
    planes = AS_STORED
    if volume.affine is not None:
        volume, planes = Orientation()(volume), ANATOMICAL
    spacing = np.array(volume.spacing or (1.0, 1.0, 1.0))
    size = [np.delete(volume.shape * spacing, plane.axis) for plane in planes]  # (rows, columns)
    inches = (_WIDTH - 0.2) / sum(columns for _, columns in size)
    inches = min(inches, _MAX_HEIGHT / max(rows for rows, _ in size))
    height = max(max(rows for rows, _ in size) * inches, 1.0) + _HEAD + _FOOT
    figure = Figure((_WIDTH, height), facecolor=BACKGROUND)
    grid = figure.add_gridspec(
        1, 3, width_ratios=[columns for _, columns in size], wspace=0.02,
        left=0.005, right=0.995, top=1 - _HEAD / height, bottom=_FOOT / height,
    )  # fmt: skip
    at = _middle(volume)
    for column, plane in enumerate(planes):
        axes = figure.add_subplot(grid[0, column])
        axes.set_title(
            f"{plane.name}, {'DHW'[plane.axis]} {at[plane.axis]}", color=TEXT, fontsize=9
        )
        draw_plane(axes, plane, volume, at[plane.axis], np.delete(spacing, plane.axis), window)
    known = "the patient's right is on the left"
    side = "as stored, sides unknown" if planes is AS_STORED else known
    note = f"{window[0]:g} to {window[1]:g} {volume.units}; {side}; not for clinical use"
    figure.text(0.008, 0.09 / height, note, color=TEXT, fontsize=8)
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", dpi=110, facecolor=BACKGROUND)


def _middle(volume: Volume) -> list[int]:
    labelled = _labelled(volume.mask)
    if labelled is None or not labelled.any():
        return [side // 2 for side in volume.shape]
    return [
        round(float(np.average(np.arange(side), weights=labelled.sum(axis=others))))
        for side, others in zip(volume.shape, ((1, 2), (0, 2), (0, 1)), strict=True)
    ]


def _labelled(mask: np.ndarray | None) -> np.ndarray | None:
    return None if mask is None else (mask > 0) & (mask != NOT_LABELLED)


def draw_plane(
    axes: Axes,
    plane: Plane,
    volume: Volume,
    index: int,
    spacing: np.ndarray,
    window: tuple[float, float],
) -> None:
    """Draws one plane of a volume with its mask's outlines; x and y are numbers of voxels.

    Args:
      axes: To draw on.
      plane: Which.
      volume: Whose axes run as the plane's do.
      index: Of the slice.
      spacing: mm along its rows and columns.
      window: Values drawn black and white.
    """
    axes.imshow(
        volume.array.take(index, plane.axis), cmap="gray", vmin=window[0], vmax=window[1],
        aspect=spacing[0] / spacing[1], origin="lower" if plane.upwards else "upper",
        interpolation="nearest",
    )  # fmt: skip
    if volume.mask is not None:
        _outline(axes, volume.mask.take(index, plane.axis))
    axes.set_axis_off()
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.97), (0.5, 0.03))
    halo = [patheffects.withStroke(linewidth=2, foreground=BACKGROUND)]
    for letter, (x, y) in zip(plane.edges, places, strict=False):  # no edges: as stored
        axes.text(x, y, letter, color=TEXT, fontsize=8, transform=axes.transAxes,
                  ha="center", va="center", path_effects=halo)  # fmt: skip


def _outline(axes: Axes, mask: np.ndarray) -> None:
    colours = matplotlib.colormaps["tab20"]
    if min(mask.shape) < 2:
        return  # a line has no outline
    for label in np.unique(mask):
        if label not in (0, NOT_LABELLED):
            colour = colours(int(label - 1) % colours.N)
            axes.contour(mask == label, levels=[0.5], colors=[colour], linewidths=0.8)
