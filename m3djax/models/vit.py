"""The 3D vision transformer of M3D and E3D-GPT, and the contract that all encoders share."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from m3djax.models.patches import Size, patch_grid, patchify
from m3djax.models.positions import LearnedPositions, SinCosPositions
from m3djax.models.transformer import Transformer, dense, layer_norm
from m3djax.sharding import constrain


@struct.dataclass
class VisionFeatures:
    """What any 3D encoder returns, and all that heads, projectors and probes may use.

    Attributes:
      tokens: (B, N, C) normalised patch tokens in raster order (D, H, W); only the visible ones,
        in the order asked for, if `keep` was given.
      grid: patches along (D, H, W) of the whole volume.
      cls: (B, C) class token, if the encoder has one.
      hidden: (L, B, [1+]N, C) output of every layer before the last norm, cls first; on request.
      pyramid: feature maps (B, D', H', W', C') from fine to coarse, if the encoder has levels.
    """

    tokens: Float[Array, "b n c"]
    grid: Size = struct.field(pytree_node=False)
    cls: Float[Array, "b c"] | None = None
    hidden: Float[Array, "l b m c"] | None = None
    pyramid: tuple[Array, ...] | None = None


class ViT3D(nn.Module):
    """Vision transformer over patches of a volume (arXiv 2010.11929, in 3D).

    M3D's (BAAI-DCAI/M3D, vit.py) and E3D-GPT's towers differ only in the fields below.

    Attributes:
      patch_size: voxels along (D, H, W) of one patch.
      hidden_size: width of a token.
      transformer: the stack of blocks.
      positions: learned or sin-cos table, added to the patch tokens.
      cls_token: whether a class token leads the sequence.
      cls_position: whether the class token has a trained position of its own (timm: yes, M3D: no).
      norm_eps: epsilon of the last norm.
      dtype: what is computed in, here and in everything that consumes the tokens: "float32", or
        "bfloat16" on accelerators. Parameters, norms' statistics and softmax stay float32.
    """

    patch_size: Size = (16, 16, 16)
    hidden_size: int = 768
    transformer: Transformer = Transformer()
    positions: LearnedPositions | SinCosPositions = SinCosPositions()
    cls_token: bool = False
    cls_position: bool = False
    norm_eps: float = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b d h w c"],
        keep: Int[Array, "b k"] | None = None,
        *,
        hidden: bool = False,
    ) -> VisionFeatures:
        """Encodes volumes.

        Args:
          images: (B, D, H, W, channels), already windowed.
          keep: rows of the patches to encode, per sample; None encodes all.
          hidden: whether to return the output of every layer.

        Raises:
          ValueError: if the patch does not divide the volume.
        """
        grid = patch_grid(images.shape[1:4], self.patch_size)
        patches = patchify(images, self.patch_size)
        positions = jnp.broadcast_to(
            self.positions(grid, self.hidden_size), (*patches.shape[:2], self.hidden_size)
        )
        if keep is not None:
            # Hidden patches are dropped before the embedding: they cost nothing at all.
            patches = jnp.take_along_axis(patches, keep[..., None], axis=1)
            positions = jnp.take_along_axis(positions, keep[..., None], axis=1)
        patches = patches.astype(self.dtype)
        tokens = dense(self.hidden_size, patches, name="patch_embed")(patches)
        tokens = constrain(tokens + positions.astype(tokens.dtype), ("batch", None, None))
        if self.cls_token:
            tokens = self._prepend_cls(tokens)
        tokens, layers = self.transformer(tokens, hidden=hidden)
        tokens = layer_norm(tokens, epsilon=self.norm_eps, name="norm")(tokens)
        cls, tokens = (tokens[:, 0], tokens[:, 1:]) if self.cls_token else (None, tokens)
        return VisionFeatures(tokens, grid, cls, layers)

    def _prepend_cls(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b 1+n c"]:
        shape = (self.hidden_size,)
        cls = self.param("cls", nn.initializers.normal(0.02), shape)
        if self.cls_position:
            cls = cls + self.param("cls_position", nn.initializers.zeros, shape)
        cls = jnp.broadcast_to(cls.astype(tokens.dtype), (tokens.shape[0], 1, *shape))
        return jnp.concatenate([cls, tokens], axis=1)
