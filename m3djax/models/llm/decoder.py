"""One decoder for Llama, Phi-3 and Qwen, which differ only in fields."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from m3djax.mesh.parameter_axes import register_axes
from m3djax.mesh.sharding import constrain
from m3djax.models.conditions import NONE, Conditions
from m3djax.models.layers import rms_norm
from m3djax.models.mlp import FeedForward, GatedMlp
from m3djax.models.multi_head import Attention
from m3djax.models.rotary import Rotary
from m3djax.models.transformer import Block, Transformer, own_stages


class CausalAttention(Attention):
    """Causal attention with the defaults of Llama-2-7B; for the fields see `Attention`."""

    num_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    qkv_bias: bool = False
    out_bias: bool = False
    causal: bool = True


class DecoderBlock(Block):
    """A block with root-mean-square norms and a gated MLP; for the fields see `Block`."""

    attention: CausalAttention = CausalAttention()
    mlp: FeedForward = GatedMlp()

    def _norm(self, x: Array, name: str) -> Array:
        return rms_norm(x, epsilon=self.norm_eps, name=name)(x)


class Decoder(nn.Module):
    """A causal language model.

    Attributes:
      vocab_size: rows of the embedding table, padding rows included.
      num_tokens: number of rows that stand for a token; None: all. Other rows are never generated.
      hidden_size: width of a token.
      stages: stacks of equal blocks. There is one, unless only some layers have a window.
      rotary: rotary positions.
      tie_word_embeddings: whether the output projection is the embedding table.
      norm_eps: epsilon of the last norm.
      max_position_embeddings: longest text in tokens.
      dtype: dtype of the computation: "float32", or "bfloat16" on accelerators. Norm statistics,
        rotations and softmax are float32.
    """

    vocab_size: int = 32000
    num_tokens: int | None = None
    hidden_size: int = 4096
    stages: tuple[Transformer, ...] = (Transformer(32, DecoderBlock()),)
    rotary: Rotary = Rotary()
    tie_word_embeddings: bool = False
    norm_eps: float = 1e-6
    max_position_embeddings: int = 4096
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Gives each stage its own modules."""
        object.__setattr__(self, "stages", own_stages(self.stages))
        super().__post_init__()

    def setup(self) -> None:
        """Creates the modules around the stages."""
        self.token_embed = nn.Embed(
            self.vocab_size, self.hidden_size, embedding_init=nn.initializers.normal(0.02)
        )
        self.norm = nn.RMSNorm(self.norm_eps, self.dtype)
        if not self.tie_word_embeddings:
            init = nn.initializers.normal(0.02)
            self.head = nn.Dense(self.vocab_size, False, self.dtype, kernel_init=init)

    def __call__(
        self,
        token_ids: Int[Array, "b n"],
        valid: Bool[Array, "b n"] | None = None,
        positions: Int[Array, "b n"] | None = None,
    ) -> Float[Array, "b n v"]:
        """Returns the logits of the token after each token. For the arguments see `encode`."""
        return self.logits(self.encode(self.embed(token_ids), valid, positions)[0])

    def embed(self, token_ids: Int[Array, "b n"]) -> Float[Array, "b n c"]:
        """Returns the rows of the embedding table for token ids."""
        embeds = jnp.take(self.token_embed.embedding, token_ids, axis=0).astype(self.dtype)
        return constrain(embeds, ("batch", None, None))

    def encode(
        self,
        embeds: Float[Array, "b n c"],
        valid: Bool[Array, "b n"] | None = None,
        positions: Int[Array, "b n"] | None = None,
        *,
        hidden: bool = False,
        conditions: Conditions = NONE,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "l b n c"] | None]:
        """Runs the blocks.

        Args:
          embeds: embedded tokens, of text or of images.
          valid: False for padding, which no token sees; None: there is no padding.
          positions: positions of the tokens; None: 0, 1, 2, ..., padding included.
          hidden: whether to return the outputs of the blocks.
          conditions: further inputs of the blocks; mask and rotation are set here.

        Returns:
          The normalised hidden states and, on request, the outputs of the blocks.
        """
        b, n, _ = embeds.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(n), (b, n))
        rotation = self.rotary(positions, self.head_dim, n)
        x = embeds.astype(self.dtype)
        layers: list[Any] = []
        for stage in self.stages:
            mask = _causal_mask(n, valid, block_of(stage).attention.window)
            seen = dataclasses.replace(conditions, mask=mask, rotation=rotation)
            x, outputs = stage(x, seen, hidden=hidden)
            layers.append(outputs)
        return self.norm(x), jnp.concatenate(layers) if hidden else None

    def logits(self, hidden: Float[Array, "b n c"]) -> Float[Array, "b n v"]:
        """Returns the logits of the whole vocabulary, in `dtype`, for normalised hidden states."""
        if not self.tie_word_embeddings:
            return self.head(hidden)
        table = self.token_embed.embedding.astype(hidden.dtype)
        # The table comes first: CPUs would transpose the second factor in each call.
        products = jax.lax.dot_general(table, hidden, (((1,), (hidden.ndim - 1,)), ((), ())))
        return jnp.moveaxis(products, 0, -1)

    def normalise(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Applies the norm after the last block."""
        return self.norm(x)

    @property
    def head_dim(self) -> int:
        """Returns the number of channels of a head."""
        return block_of(self.stages[0]).attention.head_dim

    @property
    def num_layers(self) -> int:
        """Returns the number of blocks of all stages together."""
        return sum(stage.num_layers for stage in self.stages)


register_axes(
    Decoder,
    {
        # Each lookup in a table split over its features would gather the whole table.
        "token_embed/embedding": ("vocabulary", None),
        "norm/scale": (None,),
        "head/kernel": (None, "vocabulary"),
    },
)


def block_of(stage: Transformer) -> DecoderBlock:
    """Returns the repeated block of a stage."""
    assert isinstance(stage.block, DecoderBlock), "a decoder's stages are made of DecoderBlock"
    return stage.block


def _causal_mask(n: int, valid: Array | None, window: int | None) -> Array | None:
    """Returns the mask for padding and window, if any. Causal attention itself needs no mask."""
    mask = None if valid is None else valid[:, None, None, :]
    if window is None or n <= window:
        return mask
    row, column = jnp.arange(n)[:, None], jnp.arange(n)[None, :]
    near = (row - column < window)[None, None]
    return near if mask is None else near & mask
