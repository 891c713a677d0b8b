"""Overlap of masks: Dice and IoU of hard masks, and M3D's soft Dice by name."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def dice(mask: Bool[np.ndarray, "..."], truth: Bool[np.ndarray, "..."]) -> float:
    """2 |A and B| / (|A| + |B|); NaN if both are empty, where there is nothing to overlap."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else float("nan")


def iou(mask: Bool[np.ndarray, "..."], truth: Bool[np.ndarray, "..."]) -> float:
    """|A and B| / |A or B|; NaN if both are empty."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else float("nan")


def soft_dice_released(logits: Float[np.ndarray, "..."], truth: Bool[np.ndarray, "..."]) -> float:
    """M3D's `BinaryDice`: of probabilities, without a threshold, 1 added to the denominator.

    An empty truth gives 0, also where nothing was found. Source: LaMed/src/utils (metrics) of
    BAAI-DCAI/M3D.
    """
    # exp of a large number overflows to infinity, and the probability to 0, as it should.
    with np.errstate(over="ignore"):
        probability = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    total = float(probability.sum()) + float(truth.sum())
    return 2 * float((probability * truth).sum()) / (total + 1)
