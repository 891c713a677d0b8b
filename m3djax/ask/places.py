"""Boxes in answers: where they lie in the scan, or that they cannot be read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from data_pipelines.boxes import Box, read_box
from data_pipelines.preprocess import boxes_to_source
from data_pipelines.volume import Volume, corners, transform
from m3djax.ask.part import Part

_BRACKETS = re.compile(r"\[[^\[\]]*\d[^\[\]]*(?:\]|$|(?=\[))")
_BARE = re.compile(r"(?:[-+]?\d*\.\d+\s*,\s*){3,}[-+]?\d*\.?\d+")


@dataclasses.dataclass(frozen=True)
class Place:
    """A box of an answer.

    Attributes:
      text: as it was written.
      voxels: (6,) first and past-the-last voxel along the file's own axes; not rounded.
      mm: (6,) least and largest x, y, z in RAS+ millimetres of the box around it that is parallel
        to the patient's axes; None where the file does not say where it lies.
    """

    text: str
    voxels: Float[np.ndarray, "6"]
    mm: Float[np.ndarray, "6"] | None

    def __str__(self) -> str:
        said = f"{shown_voxels(self.voxels)} of the file"
        if self.mm is None:
            return f"{said}; no millimetres, as the file does not say where it lies"
        return f"{said}; {shown_mm(self.mm)}"


@dataclasses.dataclass(frozen=True)
class Boxes:
    """All boxes of an answer.

    Attributes:
      places: those that lie in the scan.
      unreadable: texts that look like a box and are none.
      outside: boxes, as written, of which nothing lies in the scan: the crop reaches beyond it.
    """

    places: tuple[Place, ...] = ()
    unreadable: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


def read_boxes(text: str) -> tuple[list[tuple[str, Box]], list[str]]:
    """The boxes that an answer holds, and the texts that look like one and cannot be read.

    What has numbers in square brackets, closed or not, and what has four or more decimal fractions
    in a row without brackets, is meant to be a box. It is one if it is six numbers as `read_box`
    takes them.
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


def place_boxes(text: str, part: Part, *, released: bool = False) -> Boxes:
    """Where the boxes of an answer lie in the scan.

    Args:
      text: the answer.
      part: what it is about; boxes are parts of it.
      released: whether the run learned boxes that end at their last voxel, as M3D's do.
    """
    found, unreadable = read_boxes(text)
    places, outside = [], []
    for written, box in found:
        size = np.array(part.seen.shape)
        low, high = box[:3] * size, box[3:] * size + (1 if released else 0)
        if np.any(high <= low):
            unreadable.append(written)  # nothing has such a box
            continue
        voxels = _in_scan(np.concatenate([low, np.minimum(high, size)]), part)
        if voxels is None:
            outside.append(written)
        else:
            places.append(Place(written, voxels, millimetres(voxels, part.scan)))
    return Boxes(tuple(places), tuple(unreadable), tuple(outside))


def millimetres(voxels: np.ndarray, scan: Volume) -> Float[np.ndarray, "6"] | None:
    """Least and largest x, y, z in RAS+ mm of a half-open box (6,) of the file's voxels."""
    if scan.source_affine is None:
        return None
    # Half-open voxel numbers are faces; the affine speaks of centres, half a voxel further.
    faces = voxels.reshape(2, 3) - 0.5
    points = transform(scan.source_affine, faces[corners((2, 2, 2)), range(3)])
    return np.concatenate([points.min(0), points.max(0)])


def shown_voxels(box: np.ndarray) -> str:
    """A half-open box (6,) as whole voxels, at least one along each axis; "about" if rounded."""
    low, high = np.round(box).astype(int).reshape(2, 3)
    ends = list(zip(low, np.maximum(high, low + 1), strict=True))
    about = "" if np.allclose(box, np.transpose(ends).ravel(), atol=0.05) else "about "
    return f"{about}voxels [{', '.join(f'{a}:{b}' for a, b in ends)}]"


def shown_mm(mm: np.ndarray) -> str:
    """What `millimetres` gave, in words."""
    ends = zip("xyz", *mm.reshape(2, 3), strict=True)
    return "RAS+ mm " + ", ".join(f"{name} {a:.1f} to {b:.1f}" for name, a, b in ends)


def counted(boxes: Sequence[Boxes]) -> str:
    """How many boxes were placed, unreadable and outside, in words; "" if there are none."""
    placed = sum(len(one.places) for one in boxes)
    unreadable = sum(len(one.unreadable) for one in boxes)
    outside = sum(len(one.outside) for one in boxes)
    if not placed + unreadable + outside:
        return ""
    return f"boxes: {placed} placed, {unreadable} unreadable, {outside} outside of the scan"


def _in_scan(box: np.ndarray, part: Part) -> np.ndarray | None:
    """A box of the network's input on the file's grid, cut at its edges; None if none is left."""
    assert part.scan.source_shape is not None
    moved = boxes_to_source(box[None], part.seen)[0].clip(0, np.tile(part.scan.source_shape, 2))
    return moved if np.all(moved[3:] > moved[:3]) else None
