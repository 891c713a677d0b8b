"""Bounding boxes of masks, and their text form in M3D: "[d, h, w, d, h, w]".

Each number is a fraction (0..1) of the volume's size along its axis. Source of the format and of
the released behaviour: LaMed/src/utils/utils.py of BAAI-DCAI/M3D.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Float

START, END = "<bx_start>", "<bx_end>"
_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*"
_BOX = re.compile(r"\[" + ",".join([_NUMBER] * 6) + r"\]")
_SIGNED = r"([-+]?\d*\.\d+|[-+]?\d+)"
_RELEASED = re.compile(r"\[" + ", ".join([_SIGNED] * 6) + r"\]")

Box = Float[np.ndarray, "6"]
"""Minimum d, h, w and maximum d, h, w, as fractions of the volume's size."""


def mask_to_box(mask: np.ndarray, *, released: bool = False, decimals: int = 3) -> np.ndarray:
    """Returns the bounding box of a mask as fractions of its grid.

    Args:
      mask: (D, H, W), foreground is non-zero.
      released: compute the box as M3D's released code does. There the maximum is the last voxel
        itself instead of one past it, so a box is one voxel too small and a single voxel has no
        volume.
      decimals: number of decimals to round to; M3D: 3.

    Returns:
      (6,) float64: min d, h, w, max d, h, w, divided by the size and rounded; zeros if the mask
      has no foreground.
    """
    foreground = np.argwhere(mask)
    if not len(foreground):
        return np.zeros(6)
    stop = foreground.max(0) + (0 if released else 1)
    box = np.concatenate([foreground.min(0), stop]) / np.tile(mask.shape, 2)
    return np.array([round(float(value), decimals) for value in box])


def box_to_text(box: np.ndarray) -> str:
    """Returns a box (6,) as text for the language model, without the box tokens."""
    return "[" + ", ".join(str(round(float(value), 3)) for value in box) + "]"


def box_to_short_text(box: np.ndarray) -> str:
    """Returns a box (6,) as text with as few characters as possible: "[0,.3,.2,1,.5,.4]"."""
    return "[" + ",".join(f"{float(value):g}".replace("0.", ".") for value in box) + "]"


def text_to_boxes(text: str) -> np.ndarray:
    """Returns all boxes (N, 6) in a text, in order, as written; (0, 6) if there are none."""
    return np.array(_BOX.findall(text), np.float64).reshape(-1, 6)


def read_box(text: str) -> Box | None:
    """Returns the box in an answer; None if the answer has no box or is ambiguous.

    A box is six plain numbers in square brackets, separated by commas, with or without spaces and
    box tokens around it. Each number is from 0 to 1, and no maximum is below its minimum. An answer
    is ambiguous if it has several different boxes, or a malformed box beside a valid one.
    """
    found = text_to_boxes(text)
    if not len(found) or text.count("[") != len(found) or np.any(found != found[0]):
        return None
    box = found[0]
    fine = np.all((box >= 0) & (box <= 1)) and np.all(box[:3] <= box[3:])
    return box if fine else None


def read_box_released(text: str) -> Box | None:
    """Returns the first six numbers separated by exactly ", ", without any check of their values.

    The result is that of M3D's `extract_box_from_text` (LaMed/src/utils/utils.py of BAAI-DCAI/M3D).
    """
    found = _RELEASED.search(text)
    return np.array(found.groups(), np.float64) if found else None


def iou(box: np.ndarray, other: np.ndarray, *, released: bool = False) -> float:
    """Returns the intersection over union of two boxes (6,).

    Args:
      box: min d, h, w, max d, h, w in any unit.
      other: the other box, in the same unit.
      released: compute it as M3D's `calculate_iou`, which divides by the volume of the ENCLOSING
        box + 1e-6 and so reports less than the true value.
    """
    low, high = np.maximum(box[:3], other[:3]), np.minimum(box[3:], other[3:])
    intersection = float(np.maximum(high - low, 0).prod())
    if released:
        around = np.maximum(box[3:], other[3:]) - np.minimum(box[:3], other[:3])
        return intersection / (float(around.prod()) + 1e-6)
    union = float((box[3:] - box[:3]).prod() + (other[3:] - other[:3]).prod()) - intersection
    return intersection / union if union > 0 else 0.0
