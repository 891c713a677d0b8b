"""The 3D vision transformer of M3D and E3D-GPT."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from m3djax.mesh.parameter_axes import register_axes
from m3djax.mesh.sharding import constrain
from m3djax.models.conditions import NONE, Conditions
from m3djax.models.encoder import Level, TokenEncoder, VisibleTokens, VisionFeatures
from m3djax.models.layers import dense, layer_norm
from m3djax.models.patches import Size, patchify
from m3djax.models.positions import LearnedPositions, SinCosPositions
from m3djax.models.transformer import Stack, Transformer


class ViT3D(TokenEncoder):
    """Vision transformer over patches of a volume (arXiv 2010.11929, in 3D).

    The towers of M3D (BAAI-DCAI/M3D, vit.py) and E3D-GPT differ only in the fields below.

    Attributes:
      patch_size: voxels along (D, H, W) of one patch.
      hidden_size: width of a token.
      transformer: the blocks: a `Transformer`, or `Stages` of several.
      positions: learned or sin-cos table, added to the patch tokens.
      cls_token: whether the sequence starts with a class token.
      cls_position: whether the class token has its own trained position (timm: yes, M3D: no).
      norm_eps: epsilon of the last norm.
    """

    patch_size: Size = (16, 16, 16)
    hidden_size: int = 768
    transformer: Stack = Transformer()
    positions: LearnedPositions | SinCosPositions = SinCosPositions()
    cls_token: bool = False
    cls_position: bool = False
    norm_eps: float = 1e-6

    @property
    def strides(self) -> tuple[Size, ...]:
        """Returns the patch size; see `Encoder.strides`. The patches are the only level."""
        return (self.patch_size,)

    @property
    def widths(self) -> tuple[int, ...]:
        """Returns the width of a token; see `Encoder.widths`."""
        return (self.hidden_size,)

    @property
    def hidden_strides(self) -> tuple[Size, ...]:
        """Returns the patch size for each block; see `Encoder.hidden_strides`.

        The inner layers are the outputs of the blocks, before the last norm.
        """
        return (self.patch_size,) * self.transformer.num_layers

    def __call__(
        self,
        images: Float[Array, "b d h w c"],
        *,
        hidden: tuple[int, ...] = (),
        conditions: Conditions = NONE,
    ) -> VisionFeatures:
        """Encodes volumes; see `Encoder.__call__`. Tokens are normalised."""
        grid = self.grid(images.shape[1:4])
        tokens, layers = self._sequence(images, None, conditions, hidden=bool(hidden))
        inner = [] if layers is None else [layers[range(self.depth)[layer]] for layer in hidden]
        return self._features(tokens, grid, tuple(self._features(each, grid) for each in inner))

    def encode_visible(
        self,
        images: Float[Array, "b d h w c"],
        keep: Int[Array, "b k"],
        conditions: Conditions = NONE,
    ) -> VisibleTokens:
        """Encodes some patches; see `TokenEncoder.encode_visible`. Tokens are normalised."""
        tokens, _ = self._sequence(images, keep, conditions, hidden=False)
        cls, tokens = self._split(tokens)
        return VisibleTokens(tokens, self.grid(images.shape[1:4]), cls)

    @nn.compact
    def _sequence(
        self,
        images: Float[Array, "b d h w c"],
        keep: Int[Array, "b k"] | None,
        conditions: Conditions,
        *,
        hidden: bool,
    ) -> tuple[Float[Array, "b m c"], Float[Array, "l b m c"] | None]:
        """Returns normalised tokens, class token first, and the outputs of all blocks or None."""
        patches = patchify(images, self.patch_size)
        positions = jnp.broadcast_to(
            self.positions(self.grid(images.shape[1:4]), self.hidden_size),
            (*patches.shape[:2], self.hidden_size),
        )
        if keep is not None:
            # Hidden patches are dropped before the embedding, so they cost nothing.
            patches = jnp.take_along_axis(patches, keep[..., None], axis=1)
            positions = jnp.take_along_axis(positions, keep[..., None], axis=1)
        patches = patches.astype(self.dtype)
        tokens = dense(self.hidden_size, patches, name="patch_embed")(patches)
        tokens = constrain(tokens + positions.astype(tokens.dtype), ("batch", None, None))
        if self.cls_token:
            tokens = self._prepend_cls(tokens)
        conditions = dataclasses.replace(conditions, grid=self.grid(images.shape[1:4]))
        tokens, layers = self.transformer(tokens, conditions, hidden=hidden)
        return layer_norm(tokens, epsilon=self.norm_eps, name="norm")(tokens), layers

    def _split(
        self, tokens: Float[Array, "b m c"]
    ) -> tuple[Float[Array, "b c"] | None, Float[Array, "b n c"]]:
        """Returns the class token, or None, and the other tokens."""
        return (tokens[:, 0], tokens[:, 1:]) if self.cls_token else (None, tokens)

    def _features(
        self, tokens: Float[Array, "b m c"], grid: Size, hidden: tuple[VisionFeatures, ...] = ()
    ) -> VisionFeatures:
        cls, tokens = self._split(tokens)
        map = tokens.reshape(len(tokens), *grid, self.hidden_size)
        return VisionFeatures((Level(map, self.patch_size),), cls, hidden)

    def _prepend_cls(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b 1+n c"]:
        shape = (self.hidden_size,)
        cls = self.param("cls", nn.initializers.normal(0.02), shape)
        if self.cls_position:
            cls = cls + self.param("cls_position", nn.initializers.zeros, shape)
        cls = jnp.broadcast_to(cls.astype(tokens.dtype), (tokens.shape[0], 1, *shape))
        return jnp.concatenate([cls, tokens], axis=1)


register_axes(
    ViT3D,
    {
        "patch_embed/kernel": (None, "embed"),
        "patch_embed/bias": (None,),
        "cls|cls_position": (None,),
        "norm/(scale|bias)": (None,),
    },
)
