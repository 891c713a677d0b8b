"""Shared code of all readers for stored numbers: checks of size and values, and rescaling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from data_pipelines.errors import DataError

MOST_VOXELS = 2**31
"""1024 x 1024 pixels on 2,048 slices; a header with more is damaged or malicious."""
_FARTHEST = 1e5
"""Upper limit for lengths in mm: 100 m."""


def count_bytes(path: object, shape: Sequence[int], dtype: np.dtype) -> int:
    """Returns the size in bytes of an array of real numbers.

    Raises:
      DataError: the shape is empty or has more than `MOST_VOXELS` voxels, or the dtype is not a
        real number.
    """
    if dtype.kind not in "biuf":
        kind = "several numbers" if dtype.names else dtype  # names are free text
        raise DataError(path, f"voxels of type {kind}", "save a grey-value or label image")
    voxels = math.prod(int(length) for length in shape)
    if min(shape, default=0) < 1 or voxels > MOST_VOXELS:
        raise DataError(
            path,
            f"an image of shape {tuple(int(length) for length in shape)}",
            f"give one of 1 to {MOST_VOXELS:,} voxels, or repair its header",
        )
    return voxels * dtype.itemsize


def as_array(
    data: np.ndarray, dtype: np.dtype, shape: Sequence[int], order: Literal["C", "F"] = "C"
) -> np.ndarray:
    """Returns bytes as an array (D, H, W) in the native byte order."""
    array = data.view(dtype).reshape(shape, order=order)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Returns stored * slope + intercept.

    Returns:
      Integers without any change keep their dtype. Integers that are only shifted by a whole number
      become int16 or int32 if they fit. All other values become float32.
    """
    whole = stored.dtype.kind in "iub"
    if whole and (slope, intercept) == (1, 0):
        return stored
    if whole and slope == 1 and float(intercept).is_integer():
        shift = int(intercept)
        low, high = int(stored.min()) + shift, int(stored.max()) + shift
        for dtype in (np.int16, np.int32):
            if np.iinfo(dtype).min <= low <= high <= np.iinfo(dtype).max:
                out = np.empty_like(stored, dtype=dtype)
                # Exact in int64, which numpy uses only for a buffer, not for the whole image.
                return np.add(stored, shift, out=out, dtype=np.int64, casting="unsafe")
    with np.errstate(over="ignore", invalid="ignore"):  # `check_finite` gives a better message
        array = stored.astype(np.float32, copy=False)
        if (slope, intercept) != (1, 0):
            array = array * np.float32(slope)
            array += np.float32(intercept)
    return array


def check_finite(path: object, array: np.ndarray) -> None:
    """Checks that no voxel is NaN or infinite.

    Raises:
      DataError: a voxel is NaN or infinite.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            path,
            f"{np.count_nonzero(~np.isfinite(array))} voxels are NaN or infinite",
            "find out what they mean and replace them, for CT usually with -1024",
        )


def check_lengths(path: object, lengths: ArrayLike | None) -> None:
    """Checks affines and spacings for impossible numbers, before arithmetic overflows.

    Raises:
      DataError: a number (mm) is larger than 100 m.
    """
    if lengths is not None and (np.abs(lengths) > _FARTHEST).any():  # also if others are NaN
        raise DataError(
            path,
            f"lengths of more than {_FARTHEST:.0e} mm in the header",
            "repair the header, or export the scan again",
        )
