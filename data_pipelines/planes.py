"""Draws a picture of one scan: three planes side by side, with outlines of the mask."""

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
_MAX_HEIGHT = 12.0  # inches: limits the picture of a whole body


@dataclasses.dataclass(frozen=True)
class Plane:
    """A plane through a (D, H, W) volume.

    Attributes:
      name: Name of the plane.
      axis: Axis that the plane is perpendicular to.
      edges: Letters at the left, right, top and bottom edge; "" if the orientation is unknown.
      upwards: Whether rows run upwards in the picture, as Superior does.
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

    The planes are oriented as in radiology: the patient's right is on the left, superior is up, and
    the sagittal plane faces left. A volume without an affine is drawn in its stored orientation.

    Args:
      path: Path of the PNG.
      volume: Volume of any orientation. The planes pass through the centre of the labelled voxels,
        or of the volume if it has no labels.
      window: Values that are drawn black and white, in the volume's units.
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
    """Draws one plane of a volume with outlines of its mask; x and y count voxels.

    Args:
      axes: Axes to draw on.
      plane: The plane to draw.
      volume: Volume in the orientation that `plane` assumes.
      index: Index of the slice along `plane.axis`.
      spacing: mm along rows and columns of the slice.
      window: Values that are drawn black and white, in the volume's units.
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
    for letter, (x, y) in zip(plane.edges, places, strict=False):  # edges may be ""
        axes.text(x, y, letter, color=TEXT, fontsize=8, transform=axes.transAxes,
                  ha="center", va="center", path_effects=halo)  # fmt: skip


def _outline(axes: Axes, mask: np.ndarray) -> None:
    colours = matplotlib.colormaps["tab20"]
    if min(mask.shape) < 2:
        return  # a single row or column has no outline
    for label in np.unique(mask):
        if label not in (0, NOT_LABELLED):
            colour = colours(int(label - 1) % colours.N)
            axes.contour(mask == label, levels=[0.5], colors=[colour], linewidths=0.8)
