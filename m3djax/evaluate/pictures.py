"""Pictures of volumes in three planes, in radiological orientation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from etils import epath
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BACKGROUND, TEXT, _DIM, _HIDDEN = "#0d1117", "#e6edf3", "#8b949e", "#1b3a57"
_WIDTH, _MARGIN, _HEAD, _FOOT = 11.0, 0.3, 0.34, 0.34  # inches


@dataclasses.dataclass(frozen=True)
class Plane:
    """A plane of a (D, H, W) volume whose axes run to Superior, Posterior and Left.

    Attributes:
      name: name of the plane.
      axis: the axis perpendicular to the plane.
      flip: whether the picture reverses the rows, so that superior is up.
      edges: directions at the left, right, top and bottom of the picture.
    """

    name: str
    axis: int
    flip: bool
    edges: str

    def cut(self, volume: np.ndarray, index: int) -> np.ndarray:
        """Returns a slice as rows and columns of the picture."""
        image = volume.take(index, self.axis)
        return image[::-1] if self.flip else image


PLANES = (
    Plane("axial", 0, False, "RLAP"),
    Plane("coronal", 1, True, "RLSI"),
    Plane("sagittal", 2, True, "APSI"),
)


def centre(image: Float[np.ndarray, "d h w"], air: float) -> tuple[int, ...]:
    """Returns the mean voxel index, along each axis, of voxels above the value of air."""
    dense = image > air
    if not dense.any():
        return tuple(side // 2 for side in image.shape)
    return tuple(round(float(where.mean())) for where in np.nonzero(dense))


def three_planes(
    path: epath.Path,
    columns: Mapping[str, Float[np.ndarray, "d h w"]],
    *,
    spacing: Sequence[float],
    window: tuple[float, float],
    at: tuple[int, ...],
    units: str = "HU",
) -> None:
    """Writes a PNG: a row per plane, a column per volume.

    Args:
      path: path of the PNG.
      columns: title -> volume on a common grid; NaN marks hidden voxels.
      spacing: mm along (D, H, W).
      window: values shown as black and white.
      at: voxel through which the planes are cut.
      units: units of the values.
    """
    shape = next(iter(columns.values())).shape
    extent = [side * mm for side, mm in zip(shape, spacing, strict=True)]
    sizes = [[mm for axis, mm in enumerate(extent) if axis != plane.axis] for plane in PLANES]
    # Inches per mm, so that the columns fill the page. A thin slab still gets a legible row.
    scale = (_WIDTH - _MARGIN) / len(columns) / max(width for _, width in sizes)
    heights = [max(height * scale, 0.6) for height, _ in sizes]
    total = sum(heights) + _HEAD + _FOOT
    figure = Figure((_WIDTH, total), facecolor=BACKGROUND)
    grid = figure.add_gridspec(
        len(PLANES), len(columns), height_ratios=heights, hspace=0.03, wspace=0.03,
        left=_MARGIN / _WIDTH, right=0.996, top=1 - _HEAD / total, bottom=_FOOT / total,
    )  # fmt: skip
    for row, plane in enumerate(PLANES):
        for column, (title, volume) in enumerate(columns.items()):
            axes = figure.add_subplot(grid[row, column])
            _draw(axes, plane, plane.cut(volume, at[plane.axis]), spacing, window)
            if row == 0:
                axes.set_title(title, color=TEXT, fontsize=11, pad=6)
            if column == 0:
                _letters(axes, plane.edges)
                cell = grid[row, column].get_position(figure)
                figure.text(0.011, (cell.y0 + cell.y1) / 2, plane.name, rotation=90,
                            va="center", ha="center", color=_DIM, fontsize=9)  # fmt: skip
    position = ", ".join(f"{axis} {i}" for axis, i in zip("DHW", at, strict=True))
    note = f"Window {window[0]:g} to {window[1]:g} {units}, cut at voxel {position}; "
    figure.text(_MARGIN / _WIDTH, 0.1 / total, note + "the patient's right is on the left.",
                color=_DIM, fontsize=8)  # fmt: skip
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=130, facecolor=BACKGROUND)


def _draw(
    axes: Axes,
    plane: Plane,
    image: np.ndarray,
    spacing: Sequence[float],
    window: tuple[float, float],
) -> None:
    rows, columns = (mm for axis, mm in enumerate(spacing) if axis != plane.axis)
    colours = matplotlib.colormaps["gray"].with_extremes(bad=_HIDDEN)
    axes.imshow(
        np.ma.masked_invalid(image), cmap=colours, vmin=window[0], vmax=window[1],
        aspect=rows / columns, interpolation="nearest",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def _letters(axes: Axes, edges: str) -> None:
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.97), (0.5, 0.03))
    for letter, (x, y) in zip(edges, places, strict=True):
        axes.text(x, y, letter, color=TEXT, fontsize=7, transform=axes.transAxes,
                  ha="center", va="center")  # fmt: skip
