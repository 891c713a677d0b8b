"""Scores of the boxes in answers."""

from __future__ import annotations

import numpy as np

from data_pipelines.boxes import iou, read_box, read_box_released

_WHOLE = np.array([0, 0, 0, 1, 1, 1], float)


def box_scores(answer: str, truth: str) -> dict[str, float]:
    """Compares the box in an answer with the true one.

    Args:
      answer: the answer of the model.
      truth: the right answer; without a box if there is nothing to find.

    Returns:
      For a truth with a box:
      "iou": 0 if the answer has no readable box.
      "acc@0.25", "acc@0.5": whether the IoU is at least 0.25 or 0.5.
      "unparsed": 1 if the answer has no readable box.
      "iou_whole": IoU of the box of the whole volume, a guess that needs no model.
      "iou_m3d": M3D's score by M3D's parser, intersection over the ENCLOSING box. NaN where M3D
      leaves a sample out because one of the texts has no box.
      For a truth without a box, only "refused": 1 if the answer has no box either.
    """
    right, said = read_box(truth), read_box(answer)
    if right is None:
        return {"refused": float("[" not in answer)}
    true_iou = 0.0 if said is None else iou(said, right)
    theirs, meant = read_box_released(answer), read_box_released(truth)
    released = np.nan
    if theirs is not None and meant is not None:
        released = iou(theirs, meant, released=True)
    return {
        "iou": true_iou,
        "acc@0.25": float(true_iou >= 0.25),
        "acc@0.5": float(true_iou >= 0.5),
        "unparsed": float(said is None),
        "iou_whole": iou(_WHOLE, right),
        "iou_m3d": released,
    }
