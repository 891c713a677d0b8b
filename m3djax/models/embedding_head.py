"""Heads that pool the tokens of a tower into one unit vector."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from data_pipelines.errors import ConfigError
from m3djax.mesh.parameter_axes import register_axes
from m3djax.models.attention import dot_product_attention
from m3djax.models.layers import dense


class AttentionPool(nn.Module):
    """Attentional pooling: one learned query attends to all tokens (arXiv 2205.01917).

    Attributes:
      num_heads: number of heads; must divide the width.
    """

    num_heads: int = 8

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n c"], mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b c"]:
        """Returns the pooled vector. Tokens whose `mask` is False are left out.

        Raises:
          ConfigError: `num_heads` does not divide the width of the tokens.
        """
        b, _, c = tokens.shape
        if c % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} does not divide the width {c}.")
        # Not `multi_head.Attention`: the query is a parameter without a projection, and the result
        # has no output projection.
        probe = self.param("probe", nn.initializers.normal(0.02), (c,))
        query = jnp.broadcast_to(probe.astype(tokens.dtype), (b, 1, c))
        key, value = (dense(c, tokens, name=name)(tokens) for name in ("key", "value"))
        query, key, value = (
            x.reshape(b, -1, self.num_heads, c // self.num_heads) for x in (query, key, value)
        )
        where = None if mask is None else mask[:, None, None]
        return dot_product_attention(query, key, value, where).reshape(b, c)


register_axes(
    AttentionPool,
    {
        "probe": (None,),
        "(key|value)/kernel": ("embed", "heads"),
        "(key|value)/bias": ("heads",),
    },
)


class EmbeddingHead(nn.Module):
    """A head that pools tokens, projects them into the shared space, and normalises.

    Attributes:
      features: width of the space that both towers share.
      pooling: "cls" takes the class token (M3D), "mean" the mean of all tokens, and "attention" the
        output of `pool`.
      pool: attentional pooling, used by "attention" only.
    """

    features: int = 768
    pooling: Literal["cls", "mean", "attention"] = "cls"
    pool: AttentionPool = AttentionPool()

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        cls: Float[Array, "b c"] | None = None,
        mask: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b f"]:
        """Returns unit vectors, float32 for tokens of any dtype.

        Args:
          tokens: tokens of a tower.
          cls: class token of the tower, if it has one.
          mask: False for padding; None: there is no padding.

        Raises:
          ConfigError: pooling is "cls", and the tower has no class token.
        """
        if self.pooling == "attention":
            pooled = self.pool(tokens, mask)
        elif self.pooling == "mean":
            weight = jnp.ones(tokens.shape[:2], bool) if mask is None else mask
            weight = weight[..., None].astype(tokens.dtype)
            pooled = (tokens * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
        elif cls is None:
            raise ConfigError(
                'pooling="cls" needs a class token, and the tower has none. '
                'Cure: cls_token=True in the tower, or pooling="mean" or "attention".'
            )
        else:
            pooled = cls
        vector = dense(self.features, pooled, name="projection")(pooled).astype(jnp.float32)
        length = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(vector), -1, keepdims=True), 1e-24))
        return vector / length


register_axes(EmbeddingHead, {"projection/kernel": (None, "embed"), "projection/bias": (None,)})
