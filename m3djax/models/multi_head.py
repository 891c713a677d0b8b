"""Multi-head attention with its projections, for all blocks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from data_pipelines.errors import ConfigError
from m3djax.mesh.parameter_axes import register_axes
from m3djax.mesh.sharding import constrain
from m3djax.models.attention import Implementation, dot_product_attention
from m3djax.models.layers import dense, rms_norm
from m3djax.models.rotary import Rotation, rotate

_HEADS = ("batch", None, "heads", None)


class Attention(nn.Module):
    """Self-attention of tokens, or cross-attention to a context.

    If the collection "cache" has the variables `keys` and `values`, (B, heads, head_dim, slots)
    each, new tokens are written there from `slot` on. Then only the mask says which keys a query
    sees. The caches may lack an axis of size 1.

    Attributes:
      num_heads: number of query heads.
      num_key_value_heads: number of key and value heads; must divide `num_heads`. None: equal to
        `num_heads`.
      head_dim: channels of a head; None: the width of the tokens divided by `num_heads`.
      fused: whether query, key and value are one projection (query | key | value), as in Phi-3; not
        possible with a context.
      qkv_bias: whether queries, keys and values have a bias (M3D: no; E3D-GPT, Qwen2: yes).
      out_bias: whether the output has a bias.
      qk_norm: whether queries and keys of each head are normalised before the rotation (Qwen3).
      norm_eps: epsilon of these norms.
      causal: whether a token sees only itself and the tokens before it.
      window: number of tokens that a token sees, itself included; None: all. The caller's mask
        implements the window.
      implementation: implementation of attention; "auto" picks one for the device and the length.
    """

    num_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    fused: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    qk_norm: bool = False
    norm_eps: float = 1e-6
    causal: bool = False
    window: int | None = None
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Float[Array, "b m k"] | None = None,
        *,
        mask: Bool[Array, "b 1 #n m"] | None = None,
        rotation: Rotation | None = None,
        slot: Int[Array, ""] | int | None = None,
    ) -> Float[Array, "b n c"]:
        """Computes attention and the output projection.

        Args:
          x: tokens of the queries.
          context: tokens of the keys and values; None: `x` itself.
          mask: True where a query may attend to a key; None: everywhere.
          rotation: rotary positions of queries and keys.
          slot: first position of the new tokens in the cache.

        Raises:
          ConfigError: a number of heads does not divide its width or the number of query heads, or
            `fused` is set and there is a context.
        """
        query, key, value = self._project(x, context)
        if self.qk_norm:
            query = rms_norm(x, epsilon=self.norm_eps, name="query_norm")(query)
            key = rms_norm(x, epsilon=self.norm_eps, name="key_norm")(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        cached = self.has_variable("cache", "keys")
        if cached:
            assert slot is not None
            key, value = self._remember("keys", key, slot), self._remember("values", value, slot)
        out = dot_product_attention(
            query,
            key,
            value,
            mask,
            causal=self.causal and not cached,
            implementation=self.implementation,
        )
        if self.causal:  # otherwise, with a cache, the compiler may gather the heads
            out = constrain(out, _HEADS)
        return dense(x.shape[-1], x, name="out", use_bias=self.out_bias)(
            out.reshape(*out.shape[:2], -1)
        )

    def _project(self, x: Array, context: Array | None) -> tuple[Array, Array, Array]:
        heads, kv_heads, size = self._sizes(x.shape[-1])
        counts = (heads, kv_heads, kv_heads)
        widths = [count * size for count in counts]
        if self.fused and context is not None:
            raise ConfigError(
                "fused=True projects queries, keys and values of the same tokens, and there is a "
                "context. Cure: fused=False."
            )
        if self.fused:
            joined = dense(sum(widths), x, name="qkv", use_bias=self.qkv_bias)(x)
            parts = jnp.split(joined, [widths[0], widths[0] + widths[1]], axis=-1)
        else:
            seen = x if context is None else context
            parts = [
                dense(width, x, name=name, use_bias=self.qkv_bias)(tokens)
                for name, width, tokens in zip(
                    ("query", "key", "value"), widths, (x, seen, seen), strict=True
                )
            ]
        query, key, value = (
            constrain(part.reshape(*part.shape[:2], count, size), _HEADS)
            for part, count in zip(parts, counts, strict=True)
        )
        return query, key, value

    def _sizes(self, width: int) -> tuple[int, int, int]:
        """Returns the numbers of query heads and of key and value heads, and a head's channels."""
        heads, kv_heads = self.num_heads, self.num_key_value_heads or self.num_heads
        if heads % kv_heads:
            raise ConfigError(f"num_key_value_heads={kv_heads} does not divide num_heads={heads}.")
        if self.head_dim is None and width % heads:
            raise ConfigError(f"num_heads={heads} does not divide the width {width}.")
        return heads, kv_heads, self.head_dim or width // heads

    def _remember(self, name: str, new: Array, slot: Array | int) -> Array:
        """Writes new tokens into the cache, and returns the whole cache, (b, slots, heads, d)."""
        cache: nn.Variable = self.variable("cache", name)
        # XLA multiplies with the slots as the last axis. For any other order it copies the cache.
        new = jnp.transpose(new, (0, 2, 3, 1)).astype(cache.value.dtype)
        *outer, slots = cache.value.shape
        whole = jax.lax.dynamic_update_slice_in_dim(
            cache.value, new.reshape(*outer, -1), slot, axis=-1
        )
        whole = constrain(whole.reshape(*new.shape[:-1], slots), ("batch", "heads", None, None))
        cache.value = whole.reshape(*outer, slots)
        return jnp.transpose(whole, (0, 3, 1, 2))


register_axes(
    Attention,
    {
        "(query|key|value|qkv)/kernel": ("embed", "heads"),
        "(query|key|value|qkv)/bias": ("heads",),
        "(query|key)_norm/scale": (None,),
        "out/kernel": ("heads", "embed"),
        "out/bias": (None,),
    },
)
