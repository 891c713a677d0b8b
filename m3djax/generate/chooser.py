"""Choice of the next token from its logits, in compiled code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from m3djax.generate.sampling import Sampling


@struct.dataclass
class Chooser:
    """`Sampling` for compiled code. Its numbers are traced, so new values need no compilation.

    Attributes:
      temperature: see `Sampling`.
      top_k: see `Sampling`; at least 1.
      top_p: see `Sampling`.
      penalty: the repetition penalty.
      greedy: whether the best token is always chosen.
      filtered: whether top_k or top_p exclude tokens.
      penalised: whether there is a repetition penalty.
    """

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    penalty: Float[Array, ""]
    greedy: bool = struct.field(pytree_node=False)
    filtered: bool = struct.field(pytree_node=False)
    penalised: bool = struct.field(pytree_node=False)

    @classmethod
    def of(cls, options: Sampling, vocab_size: int) -> Chooser:
        """Returns the chooser with these options."""
        return cls(
            jnp.float32(options.temperature or 1.0),
            jnp.int32(options.top_k or vocab_size),
            jnp.float32(options.top_p),
            jnp.float32(options.repetition_penalty),
            greedy=options.temperature == 0,
            filtered=options.temperature > 0 and (options.top_k > 0 or options.top_p < 1),
            penalised=options.repetition_penalty != 1,
        )

    def __call__(
        self,
        scores: Float[Array, "b v"],
        seen: Bool[Array, "b v"] | None,
        keys: Key[Array, " b"],
    ) -> Int[Array, " b"]:
        """Chooses one token per row.

        Args:
          scores: logits, float32.
          seen: tokens to which the repetition penalty applies; None: no penalty.
          keys: one random key per row; every token needs new keys.
        """
        if seen is not None:
            penalised = jnp.where(scores > 0, scores / self.penalty, scores * self.penalty)
            scores = jnp.where(seen, penalised, scores)
        if self.greedy:
            return jnp.argmax(scores, axis=-1).astype(jnp.int32)
        scores = scores / self.temperature
        if self.filtered:
            scores = self._filter(scores)
        return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)

    def _filter(self, scores: Float[Array, "b v"]) -> Float[Array, "b v"]:
        """Sets tokens outside top_k and top_p to minus infinity; keeps at least the best token."""
        best = jnp.sort(scores, axis=-1, descending=True)
        rank = jnp.arange(best.shape[-1])
        best = jnp.where(rank < self.top_k, best, -jnp.inf)
        before = jnp.cumsum(jax.nn.softmax(best), axis=-1) - jax.nn.softmax(best)
        kept = (before < self.top_p) & (rank < self.top_k)
        kept = kept.at[:, 0].set(True)
        lowest = jnp.min(jnp.where(kept, best, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(scores >= lowest, scores, -jnp.inf)
