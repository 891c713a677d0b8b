"""Finds the flips and turns of a volume after which its text is still true.

A text that names a side ("left") becomes false if the volume is mirrored. A text that names an end
("upper") becomes false if the volume is upside down. A text that names a plane ("axial") becomes
false if two planes are swapped. A text with a box becomes false after any of these. A word in
another sense ("left over", "right away") only forbids some augmentation. English only.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping

import numpy as np

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
"""Words that name one end of an axis, by the axis."""
_PLANES: Mapping[int, re.Pattern[str]] = {
    _SIDE: _words(r"\w*sagittal\w*"),
    _DEPTH: _words(r"coronal\w*", r"frontal\w*"),
    _HEIGHT: _words(r"axial\w*", r"transaxial\w*", r"trans(?:verse|versal)\w*", r"horizontal\w*"),
}
"""Words that name a plane, by the axis perpendicular to the plane."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The flips and turns of a volume after which its text is still true.

    Attributes:
      flips: True for allowed flips along D, H and W.
      turns: True if quarter turns in the plane of H and W are allowed.
    """

    flips: tuple[bool, bool, bool] = (True, True, True)
    turns: bool = True


def allowed(text: str, affine: np.ndarray | None) -> Allowed:
    """Returns the flips and turns that a text allows.

    If the affine is not known, a word for any direction forbids all flips and turns, and the name
    of a plane forbids all turns. A box always forbids all flips and turns.

    Args:
      text: the text about the volume; "" allows everything.
      affine: (4, 4), from (d, h, w, 1) to RAS+ millimetres; None if it is not known.
    """
    if len(text_to_boxes(text)):
        return Allowed((False, False, False), False)
    words = set(_WORD.findall(text))
    named = {axis for word in words for axis in _named(word)[0]}
    planes = {axis for word in words for axis in _named(word)[1]}
    if affine is None:
        still = not named
        return Allowed((still, still, still), still and not planes)
    from nibabel import orientations  # takes half a second; a config does not need it

    d, h, w = (int(axis) for axis in orientations.io_orientation(affine)[:, 0])
    # A turn swaps H and W, and with them the two planes perpendicular to them.
    turns = not {h, w} & (named | planes)
    return Allowed((d not in named, h not in named, w not in named), turns)


@functools.lru_cache(1 << 16)  # few words per report: 0.2 ms for 3,500 letters, a search 10 ms
def _named(word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns axes of which a word names one end, and axes perpendicular to the plane it names."""
    directions, planes = (
        tuple(axis for axis, words in table.items() if words.fullmatch(word))
        for table in (_DIRECTIONS, _PLANES)
    )
    return directions, planes
