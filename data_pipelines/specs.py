"""Shapes and dtypes of arrays that do not exist yet."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """The shape and dtype of an array that does not exist yet.

    Attributes:
      shape: sizes of the axes.
      dtype: NumPy dtype.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
