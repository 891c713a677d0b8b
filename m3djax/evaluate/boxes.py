"""Boxes in answers: read exactly or counted as unreadable, and compared with the true ones."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Float

from data_pipelines import boxes

_SIGNED = r"([-+]?\d*\.\d+|[-+]?\d+)"
_RELEASED = re.compile(r"\[" + ", ".join([_SIGNED] * 6) + r"\]")
_WHOLE = np.array([0, 0, 0, 1, 1, 1], float)

Box = Float[np.ndarray, "6"]
"""Least and largest d, h, w, as parts of the volume."""


def read_box(text: str) -> Box | None:
    """The box that an answer gives; None if it gives none, or which one is not certain.

    A box is six plain numbers in square brackets, cut by commas, with or without spaces and box
    tokens around; each from 0 to 1, and every maximum at least its minimum. An answer that gives
    different boxes, or a broken one beside a good one, is not certain.
    """
    found = boxes.text_to_boxes(text)
    if not len(found) or text.count("[") != len(found) or np.any(found != found[0]):
        return None
    box = found[0]
    fine = np.all((box >= 0) & (box <= 1)) and np.all(box[:3] <= box[3:])
    return box if fine else None


def read_box_released(text: str) -> Box | None:
    """M3D's `extract_box_from_text`: the first six numbers cut by exactly ", ", whatever they are.

    Source: LaMed/src/utils/utils.py of BAAI-DCAI/M3D.
    """
    found = _RELEASED.search(text)
    return np.array(found.groups(), np.float64) if found else None


def box_scores(answer: str, truth: str) -> dict[str, float]:
    """How well an answer's box fits the true one.

    Args:
      answer: what was said.
      truth: the right answer; "" or a text without a box where nothing is there to be found.

    Returns:
      "iou" (0 if the answer has no readable box), "acc@0.25" and "acc@0.5" (whether the IoU is at
      least as large), "unparsed" (1 if it has no readable box), "iou_whole" (what the box of the
      whole volume would have, which needs no look at it), and "iou_m3d": M3D's own number by
      its own parser, intersection over the ENCLOSING box, NaN where M3D leaves a sample out
      because either side has no box. Where the truth has no box, "refused" alone: 1 if the answer
      has none either.
    """
    right, said = read_box(truth), read_box(answer)
    if right is None:
        return {"refused": float("[" not in answer)}
    iou = 0.0 if said is None else boxes.iou(said, right)
    theirs, meant = read_box_released(answer), read_box_released(truth)
    released = np.nan
    if theirs is not None and meant is not None:
        released = boxes.iou(theirs, meant, released=True)
    return {
        "iou": iou,
        "acc@0.25": float(iou >= 0.25),
        "acc@0.5": float(iou >= 0.5),
        "unparsed": float(said is None),
        "iou_whole": boxes.iou(_WHOLE, right),
        "iou_m3d": released,
    }
