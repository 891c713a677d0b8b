"""What all formats share once the stored numbers are at hand: size, rescaling, finite values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from data_pipelines.errors import DataError

MOST_VOXELS = 2**31
"""1024 x 1024 pixels on 2,048 slices; a header that claims more is damaged or hostile."""
_FARTHEST = 1e5
"""mm; nothing in a scan is 100 m large or away."""


def count_bytes(path: object, shape: Sequence[int], dtype: np.dtype) -> int:
    """How many bytes an array of real numbers takes.

    Raises:
      DataError: its axes are not positive or absurdly long, or its type is not a real number.
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
    """Bytes as (D, H, W) numbers in this machine's byte order."""
    array = data.view(dtype).reshape(shape, order=order)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """The values that stored numbers mean: stored * slope + intercept.

    Returns:
      Integers as they are when nothing changes, as int16 or int32 when they are only shifted by a
      whole number and fit; everything else as float32.
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
                # Exact in int64, which numpy takes for a buffer and not for the whole image.
                return np.add(stored, shift, out=out, dtype=np.int64, casting="unsafe")
    with np.errstate(over="ignore", invalid="ignore"):  # `check_finite` says it better
        array = stored.astype(np.float32, copy=False)
        if (slope, intercept) != (1, 0):
            array = array * np.float32(slope)
            array += np.float32(intercept)
    return array


def check_finite(path: object, array: np.ndarray) -> None:
    """Refuses NaN and infinite voxels.

    Raises:
      DataError: there are some.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            path,
            f"{np.count_nonzero(~np.isfinite(array))} voxels are NaN or infinite",
            "find out what they stand for and replace them, for CT usually with -1024",
        )


def check_lengths(path: object, lengths: ArrayLike | None) -> None:
    """Refuses absurd affines and spacings, before arithmetic overflows on them.

    Raises:
      DataError: one of the numbers (mm) is larger than any scan.
    """
    if lengths is not None and (np.abs(lengths) > _FARTHEST).any():  # beside NaN, too
        raise DataError(
            path,
            f"lengths of more than {_FARTHEST:.0e} mm in the header",
            "repair the header, or export the scan again",
        )
