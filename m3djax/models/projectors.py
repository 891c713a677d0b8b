"""Projectors of an encoder's tokens to tokens of a language model."""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from m3djax.mesh.parameter_axes import register_axes
from m3djax.mesh.sharding import constrain
from m3djax.models.encoder import VisionFeatures
from m3djax.models.layers import dense
from m3djax.models.patches import Size, patch_grid, patchify


class Projector(nn.Module):
    """A projector that merges neighbouring tokens, and widens them with linear layers.

    The published projectors are settings of this class:

        spp         merge="mean", num_layers=2: M3D's spatial pooling (BAAI-DCAI/M3D,
                    spatial_pooling_projector.py), the default here too
        sequence    merge="sequence": M3D's pooling over neighbours in raster order
        conv        merge="concat", num_layers=1: a convolution with stride = kernel size, as in
                    the code that E3D-GPT is based on (Med3D-R1); num_layers=2 is its "convlinear"
        linear      merge="none", num_layers=1: one layer, one token per patch
        mlp         merge="none", num_layers=2

    Class tokens are left out.

    Attributes:
      features: width of the language model's tokens.
      merge: how a block of `size` patches becomes one token. "mean" takes their mean, "sequence"
        the mean of the same number of neighbours in raster order, "concat" all their channels side
        by side. "none" does not merge: each patch is one token.
      size: patches along (D, H, W) that become one token.
      num_layers: number of linear layers.
      activation: whether there is an exact GELU between layers (M3D's proj_layer_type "mlp": yes,
        "linear": no).
    """

    features: int = 4096
    merge: Literal["mean", "sequence", "concat", "none"] = "mean"
    size: Size = (2, 2, 2)
    num_layers: int = 2
    activation: bool = True

    def num_tokens(self, grid: Size) -> int:
        """Returns the number of tokens of a volume of `grid` patches.

        Raises:
          ConfigError: blocks do not divide the grid.
        """
        if self.merge == "none":
            return math.prod(grid)
        return math.prod(patch_grid(grid, self.size, what="patches"))

    @nn.compact
    def __call__(self, vision: VisionFeatures) -> Float[Array, "b m f"]:
        """Returns tokens for the language model, in raster order (D, H, W).

        Raises:
          ConfigError: blocks do not divide the grid.
        """
        x = self._merged(vision.tokens, vision.grid)
        for number in range(self.num_layers):
            if number and self.activation:
                x = nn.gelu(x, approximate=False)
            x = dense(self.features, x, name=f"linear_{number}")(x)
            x = constrain(x, ("batch", None, None))
        return x

    def _merged(self, tokens: Float[Array, "b n c"], grid: Size) -> Float[Array, "b m k"]:
        b, _, c = tokens.shape
        count, block = self.num_tokens(grid), math.prod(self.size)
        match self.merge:
            case "none":
                return tokens
            case "sequence":
                blocks = tokens.reshape(b, count, block, c)
            case _:
                blocks = patchify(tokens.reshape(b, *grid, c), self.size)
                blocks = blocks.reshape(b, count, block, c)
        if self.merge == "concat":
            return blocks.reshape(b, count, block * c)
        return jnp.mean(blocks, axis=2, dtype=jnp.float32).astype(tokens.dtype)


register_axes(Projector, {r"linear_\d+/kernel": (None, "embed"), r"linear_\d+/bias": (None,)})
