"""The linear classifier that probes frozen features."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
_FOLDS = 3


def fit_linear(
    features: Float[np.ndarray, "n f"], labels: np.ndarray, blocks: np.ndarray
) -> ClassifierMixin:
    """Logistic regression on standardised features, classes weighted alike.

    The regularisation is chosen by cross-validation among the given samples alone. Samples of a
    block stay in one fold: overlapping crops would otherwise be on both sides of it.

    Args:
      features: one row per sample.
      labels: (n,) classes.
      blocks: (n,) names of what belongs together.

    Returns:
      Something with `predict(features)`.
    """
    model = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
    search = GridSearchCV(
        model,
        {"logisticregression__C": _STRENGTHS},
        cv=StratifiedGroupKFold(min(_FOLDS, len(np.unique(blocks)))),
        scoring="balanced_accuracy",
        error_score="raise",
    )
    # The matrices are small: threads would spend their time waiting for each other (50 times
    # slower was seen). One thread and float64 also give the same answer on every machine.
    with threadpool_limits(1):
        return search.fit(features.astype(np.float64), labels, groups=blocks)
