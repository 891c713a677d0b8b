"""The linear classifier on frozen features."""

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
    """Fits logistic regression on standardised features; all classes have the same weight.

    Cross-validation on the given samples chooses the regularisation. All samples of a block are in
    the same fold, because overlapping crops would otherwise be on both sides of the split.

    Args:
      features: one row per sample.
      labels: (n,) classes.
      blocks: (n,) name of the block of each sample.

    Returns:
      A fitted classifier with `predict(features)`.
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
    # The matrices are small: threads would mostly wait for each other (up to 50 times slower). One
    # thread and float64 also give the same answer on every machine.
    with threadpool_limits(1):
        return search.fit(features.astype(np.float64), labels, groups=blocks)
