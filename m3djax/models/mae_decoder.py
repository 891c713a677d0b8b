"""The light decoder that predicts hidden patches."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from m3djax.mesh.parameter_axes import register_axes
from m3djax.models.conditions import NONE, Conditions
from m3djax.models.encoder import VisibleTokens
from m3djax.models.layers import dense, layer_norm
from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.positions import LearnedPositions, SinCosPositions
from m3djax.models.transformer import Block, Stack, Transformer


class MAEDecoder(nn.Module):
    """Decoder of a masked autoencoder (arXiv 2111.06377, in 3D).

    Heads are 128 wide by default, to fill a 128-wide matrix unit. Published decoders have 16 heads
    of width 32, which is `transformer.block.attention.num_heads=16`.

    Attributes:
      hidden_size: width of a token.
      transformer: the stack of blocks.
      positions: position table, added to visible and hidden tokens.
      norm_eps: epsilon of the last norm.
    """

    hidden_size: int = 512
    transformer: Stack = Transformer(
        num_layers=8, block=Block(attention=Attention(num_heads=4), mlp=Mlp(mlp_dim=2048))
    )
    positions: LearnedPositions | SinCosPositions = SinCosPositions()
    norm_eps: float = 1e-6

    @nn.compact
    def __call__(
        self,
        visible: VisibleTokens,
        restore: Int[Array, "b n"],
        patch_voxels: int,
        conditions: Conditions = NONE,
    ) -> Float[Array, "b n p"]:
        """Predicts the voxels of every patch.

        Args:
          visible: tokens of the visible patches.
          restore: for each patch in raster order, its row in the sequence of visible tokens
            followed by hidden tokens.
          patch_voxels: voxels times channels of one patch.
          conditions: further inputs of the blocks.
        """
        embed = dense(self.hidden_size, visible.tokens, name="embed")
        tokens = embed(visible.tokens)
        b, k, c = tokens.shape
        n = restore.shape[1]
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (c,))
        hidden = jnp.broadcast_to(mask_token.astype(tokens.dtype), (b, n - k, c))
        tokens = jnp.concatenate([tokens, hidden], axis=1)
        tokens = jnp.take_along_axis(tokens, restore[..., None], axis=1)
        tokens = tokens + self.positions(visible.grid, c).astype(tokens.dtype)
        if visible.cls is not None:
            # The class token has the same embedding layer and no position.
            tokens = jnp.concatenate([embed(visible.cls)[:, None], tokens], axis=1)
        conditions = dataclasses.replace(conditions, grid=visible.grid)
        tokens, _ = self.transformer(tokens, conditions)
        tokens = layer_norm(tokens, epsilon=self.norm_eps, name="norm")(tokens)
        return dense(patch_voxels, tokens, name="predict")(tokens[:, -n:])


register_axes(
    MAEDecoder,
    {
        "(embed|predict)/kernel": (None, "embed"),
        "(embed|predict)/bias": (None,),
        "mask_token": (None,),
        "norm/(scale|bias)": (None,),
    },
)
