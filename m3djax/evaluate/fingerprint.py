"""Tells parameters from others, wherever they live."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt

from m3djax.params import Params


@jax.jit
def fingerprint(params: Params) -> UInt[Array, ""]:
    """32 bits that change with every bit of the parameters, wherever these live."""
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(params)):
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).ravel()
        place = jnp.arange(bits.size, dtype=jnp.uint32) + jnp.uint32(
            number * 0x9E3779B9 & 0xFFFFFFFF
        )
        # A mixed place makes swaps visible; odd factors lose no bit of the value.
        factor = ((place ^ (place >> 15)) * jnp.uint32(0x85EBCA6B)) | 1
        total = total * jnp.uint32(31) + jnp.sum(bits * factor, dtype=jnp.uint32)
    return total
