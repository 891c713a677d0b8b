"""How well boxes in answers fit the true ones."""

from __future__ import annotations

import numpy as np

from data_pipelines.boxes import iou, read_box, read_box_released

_WHOLE = np.array([0, 0, 0, 1, 1, 1], float)


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
