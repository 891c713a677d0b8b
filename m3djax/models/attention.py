"""The one place where attention is computed."""

from __future__ import annotations

import jax
from jaxtyping import Array, Bool, Float


def dot_product_attention(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b m k d"],
    value: Float[Array, "b m k d"],
    mask: Bool[Array, "b h n m"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "b n h d"]:
    """Softmax attention scaled by 1/sqrt(d); the softmax runs in float32 whatever the input.

    Args:
      query: what asks.
      key: what is compared; h is a multiple of k (grouped queries).
      value: what is returned.
      mask: true where a query may look, its axes of the given length or 1; None lets every query
        see every key.
      causal: whether query i sees no key after key i.
    """
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)
