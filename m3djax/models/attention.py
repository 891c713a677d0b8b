"""The one place where attention is computed."""

from __future__ import annotations

import jax
from jaxtyping import Array, Bool, Float


def dot_product_attention(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b m h d"],
    value: Float[Array, "b m h d"],
    mask: Bool[Array, "b 1 n m"] | None = None,
) -> Float[Array, "b n h d"]:
    """Softmax attention scaled by 1/sqrt(d); the softmax runs in float32 whatever the input.

    Args:
      query: what asks.
      key: what is compared.
      value: what is returned.
      mask: true where a query may look; None lets every query see every key.
    """
    return jax.nn.dot_product_attention(query, key, value, mask=mask)
