"""One decoder for Llama, Phi-3 and Qwen: what differs between them are fields."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from data_pipelines.errors import ConfigError
from m3djax.models.attention import Implementation, dot_product_attention
from m3djax.models.llm.rotary import Rotary, Rotation, rotate
from m3djax.models.transformer import Transformer, dense
from m3djax.parameter_axes import register_axes
from m3djax.sharding import constrain


def rms_norm(like: Array, *, epsilon: float, name: str) -> nn.RMSNorm:
    """Root-mean-square norm in the dtype of `like`, its statistics in float32."""
    return nn.RMSNorm(epsilon, like.dtype, name=name)


class CausalAttention(nn.Module):
    """Grouped-query self-attention with rotary positions.

    Without a cache every token sees the tokens before it and itself. With the variables `keys` and
    `values`, (B, heads, head_dim, slots) each, in the collection "cache", new tokens are written
    there from `slot` on, and what may be seen is up to the mask alone. An axis of size 1 may be
    missing from them.

    Attributes:
      num_heads: query heads.
      num_kv_heads: key and value heads; must divide `num_heads`.
      head_dim: channels of a head.
      fused: one projection (query | key | value), as Phi-3 keeps them.
      qkv_bias: whether queries, keys and values have a bias (Qwen2: yes).
      out_bias: whether the output has a bias.
      qk_norm: whether every head's queries and keys are normalised before they are rotated (Qwen3).
      norm_eps: epsilon of these norms.
      window: how many tokens, itself included, a token sees; None: all.
      implementation: how attention is computed; "auto" picks what suits device and length.
    """

    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    fused: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    norm_eps: float = 1e-6
    window: int | None = None
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        rotation: Rotation,
        mask: Bool[Array, "b 1 n m"] | None,
        slot: Int[Array, ""] | None = None,
    ) -> Float[Array, "b n c"]:
        """Attends; see the class for the cache."""
        query, key, value = self._project(x)
        if self.qk_norm:
            query = rms_norm(x, epsilon=self.norm_eps, name="query_norm")(query)
            key = rms_norm(x, epsilon=self.norm_eps, name="key_norm")(key)
        query, key = rotate(query, rotation), rotate(key, rotation)
        cached = self.has_variable("cache", "keys")
        if cached:
            assert slot is not None
            key, value = self._remember("keys", key, slot), self._remember("values", value, slot)
        out = dot_product_attention(
            query, key, value, mask, causal=not cached, implementation=self.implementation
        )
        out = constrain(out, ("batch", None, "heads", None))
        return dense(x.shape[-1], x, name="out", use_bias=self.out_bias)(
            out.reshape(*out.shape[:2], -1)
        )

    def _project(self, x: Array) -> tuple[Array, Array, Array]:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"{self.num_kv_heads=} does not divide {self.num_heads=}.")
        counts = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        widths = [count * self.head_dim for count in counts]
        if self.fused:
            joined = dense(sum(widths), x, name="qkv", use_bias=self.qkv_bias)(x)
            ends = [widths[0], widths[0] + widths[1]]
            parts = jnp.split(joined, ends, axis=-1)
        else:
            parts = [
                dense(width, x, name=name, use_bias=self.qkv_bias)(x)
                for name, width in zip(("query", "key", "value"), widths, strict=True)
            ]
        query, key, value = (
            constrain(
                part.reshape(*x.shape[:2], count, self.head_dim), ("batch", None, "heads", None)
            )
            for part, count in zip(parts, counts, strict=True)
        )
        return query, key, value

    def _remember(self, name: str, new: Array, slot: Array) -> Array:
        """Writes new tokens into the cache and returns all of it, (b, slots, heads, d)."""
        cache: nn.Variable = self.variable("cache", name)
        # Slots last is the order in which XLA multiplies; in any other it copies all of the cache.
        new = jnp.transpose(new, (0, 2, 3, 1)).astype(cache.value.dtype)
        *outer, slots = cache.value.shape
        whole = jax.lax.dynamic_update_slice_in_dim(
            cache.value, new.reshape(*outer, -1), slot, axis=-1
        )
        whole = constrain(whole.reshape(*new.shape[:-1], slots), ("batch", "heads", None, None))
        cache.value = whole.reshape(*outer, slots)
        return jnp.transpose(whole, (0, 3, 1, 2))


register_axes(
    CausalAttention,
    {
        "(query|key|value|qkv)/kernel": ("embed", "heads"),
        "(query|key|value|qkv)/bias": ("heads",),
        "(query|key)_norm/scale": (None,),
        "out/kernel": ("heads", "embed"),
        "out/bias": (None,),
    },
)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)).

    Attributes:
      mlp_dim: width of the middle.
      fused: one projection (gate | up), as Phi-3 keeps them.
      use_bias: whether the projections have biases.
    """

    mlp_dim: int = 11008
    fused: bool = False
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Transforms every token on its own."""
        if self.fused:
            joined = dense(2 * self.mlp_dim, x, name="gate_up", use_bias=self.use_bias)(x)
            gate, up = jnp.split(joined, 2, axis=-1)
        else:
            gate, up = (
                dense(self.mlp_dim, x, name=name, use_bias=self.use_bias)(x)
                for name in ("gate", "up")
            )
        hidden = constrain(nn.silu(gate) * up, ("batch", None, "mlp"))
        return dense(x.shape[-1], x, name="down", use_bias=self.use_bias)(hidden)


register_axes(
    GatedMlp,
    {
        "(gate|up|gate_up)/kernel": ("embed", "mlp"),
        "(gate|up|gate_up)/bias": ("mlp",),
        "down/kernel": ("mlp", "embed"),
        "down/bias": (None,),
    },
)


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
      attention: maps (tokens, rotation, mask, slot) to tokens.
      mlp: maps tokens to tokens.
      norm_eps: epsilon of both norms.
    """

    attention: CausalAttention = CausalAttention()
    mlp: GatedMlp = GatedMlp()
    norm_eps: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        rotation: Rotation,
        mask: Bool[Array, "b 1 n m"] | None,
        slot: Int[Array, ""] | None = None,
    ) -> Float[Array, "b n c"]:
        """Transforms tokens; all else goes to the attention."""
        normed = rms_norm(x, epsilon=self.norm_eps, name="norm1")(x)
        x = x + self.attention(normed, rotation, mask, slot)
        x = x + self.mlp(rms_norm(x, epsilon=self.norm_eps, name="norm2")(x))
        return constrain(x, ("batch", None, None))


register_axes(DecoderBlock, {"norm[12]/scale": (None,)})


class Decoder(nn.Module):
    """A causal language model.

    Attributes:
      vocab_size: rows of the embedding table, padding rows included.
      num_tokens: rows that stand for a token; None: all. The others are never generated.
      hidden_size: width of a token.
      stages: stacks of equal blocks; one, unless some layers have a window and others do not.
      rotary: the positions.
      tie_embeddings: whether the output projection is the embedding table.
      norm_eps: epsilon of the last norm.
      context: longest text in tokens.
      dtype: what is computed in: "float32", or "bfloat16" on accelerators. Norms' statistics,
        rotations and softmax are float32.
    """

    vocab_size: int = 32000
    num_tokens: int | None = None
    hidden_size: int = 4096
    stages: tuple[Transformer, ...] = (Transformer(32, DecoderBlock()),)
    rotary: Rotary = Rotary()
    tie_embeddings: bool = False
    norm_eps: float = 1e-6
    context: int = 4096
    dtype: Literal["float32", "bfloat16"] = "float32"

    def setup(self) -> None:
        """The parts around the stages."""
        self.token_embed = nn.Embed(
            self.vocab_size, self.hidden_size, embedding_init=nn.initializers.normal(0.02)
        )
        self.norm = nn.RMSNorm(self.norm_eps, self.dtype)
        if not self.tie_embeddings:
            init = nn.initializers.normal(0.02)
            self.head = nn.Dense(self.vocab_size, False, self.dtype, kernel_init=init)

    def __call__(
        self,
        token_ids: Int[Array, "b n"],
        valid: Bool[Array, "b n"] | None = None,
        positions: Int[Array, "b n"] | None = None,
    ) -> Float[Array, "b n v"]:
        """Logits of the token after each token; for the arguments see `encode`."""
        return self.logits(self.encode(self.embed(token_ids), valid, positions)[0])

    def embed(self, token_ids: Int[Array, "b n"]) -> Float[Array, "b n c"]:
        """Rows of the embedding table."""
        embeds = jnp.take(self.token_embed.embedding, token_ids, axis=0).astype(self.dtype)
        return constrain(embeds, ("batch", None, None))

    def encode(
        self,
        embeds: Float[Array, "b n c"],
        valid: Bool[Array, "b n"] | None = None,
        positions: Int[Array, "b n"] | None = None,
        *,
        hidden: bool = False,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "l b n c"] | None]:
        """Runs the blocks.

        Args:
          embeds: embedded tokens, of text or of images.
          valid: false where a token is padding, which no token sees; None: all are valid.
          positions: numbers of the tokens; None: 0, 1, 2, ... whether padding or not.
          hidden: whether to return what every block gave.

        Returns:
          The normalised hidden states and, if asked for, the blocks' outputs.
        """
        b, n, _ = embeds.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(n), (b, n))
        rotation = self.rotary(positions, self.head_dim, n)
        x = embeds.astype(self.dtype)
        layers: list[Any] = []
        for stage in self.stages:
            mask = _causal_mask(n, valid, block_of(stage).attention.window)
            x, outputs = stage(x, rotation, mask, hidden=hidden)
            layers.append(outputs)
        return self.norm(x), jnp.concatenate(layers) if hidden else None

    def logits(self, hidden: Float[Array, "b n c"]) -> Float[Array, "b n v"]:
        """Scores of all rows of the vocabulary, in `dtype`, for normalised hidden states."""
        if not self.tie_embeddings:
            return self.head(hidden)
        table = self.token_embed.embedding.astype(hidden.dtype)
        # The table comes first: as the second factor CPUs would transpose all of it every time.
        products = jax.lax.dot_general(table, hidden, (((1,), (hidden.ndim - 1,)), ((), ())))
        return jnp.moveaxis(products, 0, -1)

    def normalise(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """The norm after the last block."""
        return self.norm(x)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return block_of(self.stages[0]).attention.head_dim

    @property
    def num_layers(self) -> int:
        """Blocks of all stages."""
        return sum(stage.num_layers for stage in self.stages)


register_axes(
    Decoder,
    {
        # A table split over its features would be gathered whole at every lookup.
        "token_embed/embedding": ("vocabulary", None),
        "norm/scale": (None,),
        "head/kernel": (None, "vocabulary"),
    },
)


def block_of(stage: Transformer) -> DecoderBlock:
    """The block that a stage repeats."""
    assert isinstance(stage.block, DecoderBlock), "a decoder's stages are made of DecoderBlock"
    return stage.block


def _causal_mask(n: int, valid: Array | None, window: int | None) -> Array | None:
    """What the causal attention needs beside being causal: padding and window, if any."""
    mask = None if valid is None else valid[:, None, None, :]
    if window is None or n <= window:
        return mask
    row, column = jnp.arange(n)[:, None], jnp.arange(n)[None, :]
    near = (row - column < window)[None, None]
    return near if mask is None else near & mask
