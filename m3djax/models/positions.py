"""Position tables, learned or 3D sin-cos, for any grid."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from m3djax.mesh.parameter_axes import register_axes
from m3djax.models.patches import Size


def sincos_3d(grid: Size, dim: int, *, released: bool = False) -> np.ndarray:
    """Returns the 3D sin-cos table, float64 of shape (prod(grid), dim), computed in float64.

    Each axis is encoded by a third of the channels: sines and cosines of `dim // 6` frequencies,
    from 1 down to 1/10000. The remaining channels are zero.

    Args:
      grid: patches along (D, H, W).
      dim: width of a token.
      released: whether to make the table of the code that E3D-GPT is based on
        (laihaoran/Med3D-R1). It scales coordinates to 0..1, so that neighbours are almost equal.
        Its rows have the LAST axis outermost, but tokens have the first axis outermost. This makes
        no difference for equal sides. The corrected table uses patch indices and the order of the
        tokens.
    """
    half = dim // 3 // 2
    frequencies = 10000.0 ** (-np.arange(half) / half)
    sides = grid[::-1] if released else grid
    axes = [np.linspace(0, 1, n) if released else np.arange(n, dtype=np.float64) for n in sides]
    parts = []
    for coordinate in np.meshgrid(*axes, indexing="ij"):
        angles = coordinate.reshape(-1, 1) * frequencies
        parts += [np.sin(angles), np.cos(angles)]
    table = np.concatenate(parts, axis=1)
    return np.pad(table, ((0, 0), (0, dim - table.shape[1])))


def resize_table(table: Float[Array, "n c"], old: Size, new: Size) -> Float[Array, "m c"]:
    """Resizes a position table from grid `old` to grid `new` (trilinear, half-pixel centers).

    Both grids are patches along (D, H, W).
    """
    volume = table.reshape(*old, table.shape[-1])
    resized = jax.image.resize(volume, (*new, table.shape[-1]), "trilinear", antialias=False)
    return resized.reshape(-1, table.shape[-1])


class SinCosPositions(nn.Module):
    """A fixed 3D sin-cos table for any grid, without parameters.

    Attributes:
      released: whether to use the table of the original code; see `sincos_3d`.
    """

    released: bool = False

    def __call__(self, grid: Size, dim: int) -> Float[Array, "n c"]:
        """Returns the table for `grid` = patches along (D, H, W) and width `dim`."""
        return jnp.asarray(sincos_3d(grid, dim, released=self.released), jnp.float32)


class LearnedPositions(nn.Module):
    """A trained table. It is interpolated for other grids (trilinear, half-pixel centers).

    Attributes:
      grid: patches along (D, H, W) of the table.
      start: initial values: "normal" (std 0.02), "sincos", or "sincos_released".
    """

    grid: Size
    start: Literal["normal", "sincos", "sincos_released"] = "normal"

    @nn.compact
    def __call__(self, grid: Size, dim: int) -> Float[Array, "n c"]:
        """Returns the table for `grid` = patches along (D, H, W) and width `dim`."""
        table = self.param("table", self._initial, (int(np.prod(self.grid)), dim))
        if tuple(grid) == tuple(self.grid):
            return table
        return resize_table(table, self.grid, grid)

    def _initial(self, rng: Array, shape: tuple[int, int]) -> Array:
        if self.start == "normal":
            return 0.02 * jax.random.normal(rng, shape)
        table = sincos_3d(self.grid, shape[1], released=self.start == "sincos_released")
        return jnp.asarray(table, jnp.float32)


register_axes(LearnedPositions, {"table": (None, None)})
