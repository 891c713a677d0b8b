"""Which flips and turns of a volume leave its text true?

A text that names a side is false of the mirrored volume, one that names an end is false upside
down, one that names a plane is false when two planes change places, and one with a box after any of
that. A word in another sense ("left over", "right away") costs no more than some augmentation.
English only.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping

import numpy as np
from nibabel import orientations

from data_pipelines.boxes import text_to_boxes

# Axes of the patient: 0 from side to side, 1 from front to back, 2 from feet to head.
_SIDE, _DEPTH, _HEIGHT = range(3)
_WORD = re.compile(r"[^\W_]+")


def _words(*words: str) -> re.Pattern[str]:
    return re.compile("|".join(words), re.IGNORECASE)


_DIRECTIONS: Mapping[int, re.Pattern[str]] = {
    _SIDE: _words(
        r"left\w*",
        r"right\w*",
        "lt",
        "rt",
        "l",
        "r",
        r"\w*clockwise",
        r"(?:dextro|levo|laevo)\w*",
        "situs",
        r"(?:ipsi|contra)lateral\w*",
        "decubitus",
    ),
    _DEPTH: _words(
        r"\w*anterior\w*",
        r"\w*posterior\w*",
        r"(?:antero|postero|ventro|dorso|retro|pre)\w+",
        r"ventral\w*",
        r"dorsal\w*",
        "front",
        "back",
        "behind",
        r"dependent\w*",
        "supine",
        "prone",
        r"layer(?:s|ed|ing)",
    ),
    _HEIGHT: _words(
        r"\w*superior\w*",
        r"\w*inferior\w*",
        r"upper\w*",
        r"lower\w*",
        r"(?:supra|infra|sub|cranio|caudo)\w+",
        r"crani\w*",
        r"caud\w*",
        r"cephal\w*",
        "above",
        "below",
        "top",
        "bottom",
        "apex",
        "apices",
        r"\w*apical",
        "base",
        "bases",
        r"\w*basal",
        r"\w*basilar",
        r"ascending",
        r"descending",
        r"upwards?",
        r"downwards?",
        "erect",
        "upright",
    ),
}
"""Words of direction, by the axis that they name one end of."""
_PLANES: Mapping[int, re.Pattern[str]] = {
    _SIDE: _words(r"\w*sagittal\w*"),
    _DEPTH: _words(r"coronal\w*", r"frontal\w*"),
    _HEIGHT: _words(r"axial\w*", r"transaxial\w*", r"trans(?:verse|versal)\w*", r"horizontal\w*"),
}
"""Words of planes, by the axis that goes through them."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """What may be done with a volume without making its text false.

    Attributes:
      flips: Along D, H and W.
      turns: Quarter turns in the plane of H and W.
    """

    flips: tuple[bool, bool, bool] = (True, True, True)
    turns: bool = True


def allowed(text: str, affine: np.ndarray | None) -> Allowed:
    """What a text allows.

    Where nobody knows how the axes lie, a word of any direction forbids all flips and turns, and
    the name of a plane all turns. A box forbids all of both.

    Args:
      text: Of the volume; "" allows everything.
      affine: (4, 4) from (d, h, w, 1) to RAS+ millimetres, None when it is not known.
    """
    if len(text_to_boxes(text)):
        return Allowed((False, False, False), False)
    words = set(_WORD.findall(text))
    named = {axis for word in words for axis in _named(word)[0]}
    planes = {axis for word in words for axis in _named(word)[1]}
    if affine is None:
        still = not named
        return Allowed((still, still, still), still and not planes)
    d, h, w = (int(axis) for axis in orientations.io_orientation(affine)[:, 0])
    # A turn swaps H and W, and with them the two planes that they go through.
    turns = not {h, w} & (named | planes)
    return Allowed((d not in named, h not in named, w not in named), turns)


@functools.lru_cache(1 << 16)  # reports use few words: 0.2 ms for 3,500 letters; a search takes 10
def _named(word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes that a word names one end of, and axes that go through the plane it names."""
    directions, planes = (
        tuple(axis for axis, words in table.items() if words.fullmatch(word))
        for table in (_DIRECTIONS, _PLANES)
    )
    return directions, planes
