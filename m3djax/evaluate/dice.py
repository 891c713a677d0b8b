"""Overlap of masks: Dice and IoU of hard masks, and M3D's soft Dice by name."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def dice(mask: Bool[np.ndarray, "..."], truth: Bool[np.ndarray, "..."]) -> float:
    """Returns the Dice score 2 |A and B| / (|A| + |B|); NaN if both masks are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else float("nan")


def iou(mask: Bool[np.ndarray, "..."], truth: Bool[np.ndarray, "..."]) -> float:
    """Returns the IoU |A and B| / |A or B|; NaN if both masks are empty."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else float("nan")


def soft_dice_released(logits: Float[np.ndarray, "..."], truth: Bool[np.ndarray, "..."]) -> float:
    """Returns M3D's `BinaryDice`: Dice of probabilities, without a threshold.

    The denominator has 1 added. An empty truth gives 0, even for an empty prediction. Source:
    LaMed/src/utils (metrics) of BAAI-DCAI/M3D.
    """
    # exp of a large number overflows to infinity, which makes the probability 0, as it should.
    with np.errstate(over="ignore"):
        probability = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    total = float(probability.sum()) + float(truth.sum())
    return 2 * float((probability * truth).sum()) / (total + 1)
