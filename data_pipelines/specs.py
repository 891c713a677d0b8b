"""Shapes of arrays that are not there yet."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of an array that is not there yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
