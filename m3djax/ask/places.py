"""Places in answers, in the coordinates of the scan."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
from jaxtyping import Float

from data_pipelines.boxes import Box, read_box
from data_pipelines.preprocess import boxes_to_source
from data_pipelines.volume import Volume, corners, transform
from m3djax.ask.field_of_view import FieldOfView

_BRACKETS = re.compile(r"\[[^\[\]]*\d[^\[\]]*(?:\]|$|(?=\[))")
_BARE = re.compile(r"(?:[-+]?\d*\.\d+\s*,\s*){3,}[-+]?\d*\.?\d+")


@dataclasses.dataclass(frozen=True, eq=False)
class PlacedBox:
    """A box of an answer, placed in the scan.

    Attributes:
      text: the box as written in the answer.
      voxels: (6,) first and past-the-last voxel along the file's own axes; not rounded.
      mm: (6,) least and largest x, y, z in RAS+ millimetres. They are those of the enclosing box
        that is parallel to the patient's axes. None if the file has no affine.
    """

    text: str
    voxels: Float[np.ndarray, "6"]
    mm: Float[np.ndarray, "6"] | None

    def __str__(self) -> str:
        said = f"{shown_voxels(self.voxels)} of the file"
        if self.mm is None:
            return f"{said}; no millimetres, as the file does not say where it lies"
        return f"{said}; {shown_mm(self.mm)}"


Place = PlacedBox
"""A place of a reply in the scan; further kinds of places would make this a union."""


@dataclasses.dataclass(frozen=True)
class FoundBoxes:
    """All boxes of an answer.

    Attributes:
      placed: boxes in the scan.
      unreadable: texts that look like a box but cannot be read.
      outside: boxes, as written, that lie wholly in a part of the crop outside of the scan.
    """

    placed: tuple[PlacedBox, ...] = ()
    unreadable: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


def read_boxes(text: str) -> tuple[list[tuple[str, Box]], list[str]]:
    """Returns the boxes of an answer, and the texts that look like a box but cannot be read.

    Numbers in square brackets, closed or not, look like a box. So do four or more decimal fractions
    in a row without brackets. They are a box if `read_box` reads them.
    """
    found, unreadable = [], []
    for match in _BRACKETS.finditer(text):
        box = read_box(match[0])
        if box is None:
            unreadable.append(match[0])
        else:
            found.append((match[0], box))
    unreadable += [match[0] for match in _BARE.finditer(_BRACKETS.sub(" ", text))]
    return found, unreadable


def place_boxes(text: str, fov: FieldOfView, *, released: bool = False) -> FoundBoxes:
    """Places the boxes of an answer in the scan.

    Args:
      text: the answer.
      fov: the field of view of the scan; boxes are fractions of it.
      released: whether the run learned boxes that include their end, as in M3D's release.
    """
    found, unreadable = read_boxes(text)
    placed, outside = [], []
    for written, box in found:
        size = np.array(fov.seen.shape)
        low, high = box[:3] * size, box[3:] * size + (1 if released else 0)
        if np.any(high <= low):
            unreadable.append(written)  # a box without voxels
            continue
        voxels = _in_scan(np.concatenate([low, np.minimum(high, size)]), fov)
        if voxels is None:
            outside.append(written)
        else:
            placed.append(PlacedBox(written, voxels, millimetres(voxels, fov.scan)))
    return FoundBoxes(tuple(placed), tuple(unreadable), tuple(outside))


def millimetres(voxels: np.ndarray, scan: Volume) -> Float[np.ndarray, "6"] | None:
    """Returns least and largest x, y, z in RAS+ mm of a half-open box (6,) of the file's voxels."""
    if scan.source_affine is None:
        return None
    # Half-open voxel numbers are faces; the affine maps centres, half a voxel further.
    faces = voxels.reshape(2, 3) - 0.5
    points = transform(scan.source_affine, faces[corners((2, 2, 2)), range(3)])
    return np.concatenate([points.min(0), points.max(0)])


def shown_voxels(box: np.ndarray) -> str:
    """Formats a half-open box (6,) as whole voxels, at least one along each axis."""
    low, high = np.round(box).astype(int).reshape(2, 3)
    ends = list(zip(low, np.maximum(high, low + 1), strict=True))
    about = "" if np.allclose(box, np.transpose(ends).ravel(), atol=0.05) else "about "
    return f"{about}voxels [{', '.join(f'{a}:{b}' for a, b in ends)}]"


def shown_mm(mm: np.ndarray) -> str:
    """Formats the result of `millimetres`."""
    ends = zip("xyz", *mm.reshape(2, 3), strict=True)
    return "RAS+ mm " + ", ".join(f"{name} {a:.1f} to {b:.1f}" for name, a, b in ends)


def _in_scan(box: np.ndarray, fov: FieldOfView) -> np.ndarray | None:
    """Maps a box to the file's grid, and clips it to the scan; None if nothing is left."""
    assert fov.scan.source_shape is not None
    moved = boxes_to_source(box[None], fov.seen)[0].clip(0, np.tile(fov.scan.source_shape, 2))
    return moved if np.all(moved[3:] > moved[:3]) else None
