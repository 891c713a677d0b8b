"""Separable resampling in numpy: any axis-aligned change of grid, one axis at a time.

A new grid is given per axis by `start` and `step`: voxel i is at `start + step * i`, in voxels of
the old axis. Linear interpolation is a product with a banded weight matrix per axis, which BLAS
computes faster than a gather. The axis that shrinks most is resampled first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Numbers = Sequence[float] | np.ndarray

_BLOCK = 16
"""Output positions per matrix product. A small block needs few input positions. This avoids most
multiplications by zero and limits the size of the float32 copy of the input."""


def linear(
    array: np.ndarray,
    shape: Sequence[int],
    start: Numbers,
    step: Numbers,
    *,
    anti_alias: bool = False,
    fill: float = 0.0,
) -> np.ndarray:
    """Resamples an array to another grid by linear interpolation, in float32.

    Between the centre of an edge voxel and its outer face, the voxel's value is repeated, as in
    torch with `align_corners=False`.

    Args:
      array: (D, H, W), any real dtype.
      shape: shape of the result.
      start: (3,) position of the result's voxel 0 on each axis, in voxels of the input.
      step: (3,) voxels of the input per voxel of the result; may be negative.
      anti_alias: on axes that shrink, widen the triangular kernel by the factor `step`.
      fill: value outside the input.

    Returns:
      float32 array of shape `shape`; the input itself, in its dtype, if no axis changes.
    """
    sizes = array.shape
    axes = [a for a in range(3) if (shape[a], start[a], step[a]) != (sizes[a], 0, 1)]
    for axis in sorted(axes, key=lambda a: shape[a] / sizes[a]):
        weights = linear_weights(sizes[axis], shape[axis], start[axis], step[axis], anti_alias)
        array = _along(array, weights, axis)
        _fill_outside(array, axis, np.logical_not(weights.any(axis=1)), fill)
    return array


def nearest(
    array: np.ndarray,
    shape: Sequence[int],
    start: Numbers,
    step: Numbers,
    *,
    fill: float = 0,
) -> np.ndarray:
    """Resamples an array by nearest neighbour in its dtype; arguments as for `linear`."""
    index, outside = [], []
    for axis, size in enumerate(array.shape):
        position = np.floor(start[axis] + step[axis] * np.arange(shape[axis]) + 0.5).astype(int)
        outside.append((position < 0) | (position >= size))
        index.append(position.clip(0, size - 1))
    out = array[np.ix_(*index)]
    for axis in range(3):
        _fill_outside(out, axis, outside[axis], fill)
    return out


def nearest_floor(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resamples an array as torch's mode "nearest": takes voxel floor(i * in / out), in float32.

    The result is shifted by half a voxel against `linear`. It is only for parity with the masks of
    the released M3D.
    """
    index = []
    for size, new in zip(array.shape, shape, strict=True):
        scale = np.float32(size) / np.float32(new)
        position = np.floor(np.arange(new, dtype=np.float32) * scale).astype(int)
        index.append(position.clip(0, size - 1))
    return array[np.ix_(*index)]


def linear_weights(
    size: int, new_size: int, start: float, step: float, anti_alias: bool = False
) -> np.ndarray:
    """Returns the float32 matrix (new_size, size) that interpolates along one axis.

    Rows of positions outside the input are zero.

    Args:
      size: voxels of the input.
      new_size: voxels of the result.
      start: position of the result's voxel 0, in voxels of the input.
      step: voxels of the input per voxel of the result; may be negative.
      anti_alias: see `linear`.
    """
    position = start + step * np.arange(new_size)[:, None]
    width = max(abs(step), 1.0) if anti_alias else 1.0
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(size) - position) / width)
    weights[((position < -0.5) | (position > size - 0.5))[:, 0]] = 0
    total = weights.sum(1, keepdims=True)
    return (weights / np.where(total == 0, 1, total)).astype(np.float32)


def _along(array: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Multiplies one axis by a weight matrix, one block of output positions at a time."""
    shape = list(array.shape)
    shape[axis] = len(weights)
    out = np.zeros(shape, np.float32)
    for begin in range(0, len(weights), _BLOCK):
        block = weights[begin : begin + _BLOCK]
        used = np.flatnonzero(block.any(axis=0))
        if not len(used):
            continue
        needed = slice(used[0], used[-1] + 1)
        source = array[_at(axis, needed)].astype(np.float32)
        product = np.tensordot(block[:, needed], source, (1, axis))
        out[_at(axis, slice(begin, begin + _BLOCK))] = np.moveaxis(product, 0, axis)
    return out


def _fill_outside(array: np.ndarray, axis: int, outside: np.ndarray, fill: float) -> None:
    if outside.any():
        array[_at(axis, outside)] = fill


def _at(axis: int, index: slice | np.ndarray) -> tuple[slice | np.ndarray, ...]:
    return (slice(None),) * axis + (index,)
