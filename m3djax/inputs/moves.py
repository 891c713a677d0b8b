"""Flips and quarter turns of a sample's arrays: voxels, labels, points, boxes and slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from data_pipelines.errors import ConfigError
from data_pipelines.fields.base import Spatial

Size = Sequence[int]
_TURNS = 4


@struct.dataclass
class Moves:
    """The moves of a sample: first the flips, then the quarter turns.

    Attributes:
      flips: whether to flip along D, H and W; None for an axis that is never flipped.
      turns: 0 to 3 quarter turns from H towards W, as in `numpy.rot90`; None for no turns at all.
    """

    flips: tuple[Bool[Array, ""] | None, ...]
    turns: Int[Array, ""] | None


def move(
    moves: Moves, arrays: Mapping[str, Array], spatial: Mapping[str, Spatial]
) -> dict[str, Array]:
    """Returns the arrays of one sample, moved together.

    Args:
      moves: flips and turns.
      arrays: arrays of the sample, by name.
      spatial: kind and axes of each array, by name.

    Raises:
      ConfigError: the plane of the turn is not square, or no array tells the size of the sample.
    """
    if moves.turns is None and not any(flip is not None for flip in moves.flips):
        return dict(arrays)
    size = _size(arrays, spatial)
    moved = {}
    for name, array in arrays.items():
        how = spatial[name]
        if how.kind == "slice":
            moved[name] = _slice(moves, array, how.axes, arrays[how.at][0])
        elif how.kind == "slice_at":
            moved[name] = _slice_at(moves, array, size)
        elif how.kind in ("image", "mask"):
            moved[name] = _grid(moves, array, how.axes)
        else:
            moved[name] = _positions(moves, array, size, boxes=how.kind == "boxes")
    return moved


def _size(arrays: Mapping[str, Array], spatial: Mapping[str, Spatial]) -> Size:
    """Returns the number of voxels of the sample along (D, H, W)."""
    for name, array in arrays.items():
        if spatial[name].kind in ("image", "mask"):
            return [array.shape[axis] for axis in spatial[name].axes]
    raise ConfigError(
        f"augment moves samples, and {', '.join(arrays)} do not tell their size. Cure: add a field "
        "with voxels, or set flip and rotate90 to 0."
    )


def _grid(moves: Moves, array: Array, axes: Sequence[int]) -> Array:
    """Moves voxels or labels."""
    for axis, flipped in zip(axes, moves.flips, strict=True):
        if flipped is not None:
            array = jnp.where(flipped, jnp.flip(array, axis), array)
    return array if moves.turns is None else _turned(moves.turns, array, axes[1], axes[2])


def _turned(turns: Int[Array, ""], array: Array, first: int, second: int) -> Array:
    """Turns a plane of an array."""
    if array.shape[first] != array.shape[second]:
        raise ConfigError(
            "rotate90 needs H = W, and this is "
            f"{array.shape[first]} x {array.shape[second]}. Cure: set a square size, or rotate90=0."
        )
    turned = jnp.stack([jnp.rot90(array, k, axes=(first, second)) for k in range(_TURNS)])
    return turned[turns]


def _positions(moves: Moves, array: Array, size: Size, *, boxes: bool) -> Array:
    """Moves points (..., 3) or boxes (..., 6). Box coordinates are voxel faces, from 0 to n."""
    last = [side if boxes else side - 1 for side in size]
    ends = array.reshape(*array.shape[:-1], -1, 3)  # a box has two corners, a point has one

    def mirrored(axis: int) -> Array:
        return last[axis] - ends[..., ::-1, axis]

    for axis, flipped in enumerate(moves.flips):
        if flipped is not None:
            ends = jnp.where(flipped, ends.at[..., axis].set(mirrored(axis)), ends)
    if moves.turns is not None:
        turned = [ends]
        for _ in range(1, _TURNS):
            ends = jnp.stack([ends[..., 0], mirrored(2), ends[..., 1]], axis=-1)
            turned.append(ends)
        ends = jnp.stack(turned)[moves.turns]
    return ends.reshape(array.shape)


def _slice(moves: Moves, array: Array, axes: Sequence[int], plane: Int[Array, ""]) -> Array:
    """Moves the voxels of a slice that is perpendicular to the axis `plane`.

    The rows of the slice run along D or H, its columns along H or W.
    """
    d, h, w = (jnp.asarray(False) if flip is None else flip for flip in moves.flips)
    rows, columns = jnp.where(plane == 0, h, d), jnp.where(plane == 2, h, w)
    array = jnp.where(rows, jnp.flip(array, axes[0]), array)
    if moves.turns is None:
        return jnp.where(columns, jnp.flip(array, axes[1]), array)
    # A quarter turn maps H to W, and W to reversed H.
    turns = moves.turns
    columns ^= ((plane == 1) & ((turns == 1) | (turns == 2))) | ((plane == 2) & (turns >= 2))
    array = jnp.where(columns, jnp.flip(array, axes[1]), array)
    return jnp.where(plane == 0, _turned(turns, array, *axes), array)


def _slice_at(moves: Moves, at: Int[Array, "2"], size: Size) -> Int[Array, "2"]:
    """Moves the position of a slice: its perpendicular axis, and its index along that axis."""
    sides = jnp.asarray(size, at.dtype)

    def flipped(at: Array) -> Array:
        return at.at[1].set(sides[at[0]] - 1 - at[1])

    for axis, flip in enumerate(moves.flips):
        if flip is not None:
            at = jnp.where(flip & (at[0] == axis), flipped(at), at)
    if moves.turns is None:
        return at
    turned = [at]
    for _ in range(1, _TURNS):
        at = jnp.where(at[0] == 2, flipped(at), at)
        at = at.at[0].set(jnp.where(at[0] == 0, 0, 3 - at[0]))
        turned.append(at)
    return jnp.stack(turned)[moves.turns]
