"""Attention for one block of queries at a time. The memory does not grow with their number.

As in FlashAttention (arXiv 2205.14135), the forward pass keeps the maxima and sums of the rows, and
the backward pass computes the scores again. A block of queries takes all keys at once, so it needs
no running maximum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

# The scores of a block should fit the cache of a core: the fastest size measured, of 128 to 2048.
_ROWS = 512
_NEVER = -1e30


def blocked_attention(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b m k d"],
    value: Float[Array, "b m k d"],
    mask: Bool[Array, "#b #h #n m"] | None = None,
    *,
    causal: bool = False,
    serial: bool = True,
) -> Float[Array, "b n h d"]:
    """Computes attention; see `dot_product_attention`.

    Args:
      query: queries.
      key: keys.
      value: values.
      mask: True where a query may attend to a key.
      causal: token i sees only tokens up to i.
      serial: whether heads are computed in turn, for the caches of CPUs, instead of all at once.
    """
    b, n, h, d = query.shape
    groups = h // key.shape[2]
    key, value = (jnp.repeat(x, groups, axis=2) if groups > 1 else x for x in (key, value))
    # Blocks have equal sizes. Padding rows of the last block are cut off at the end.
    blocks = -(-n // _ROWS)
    rows = -(-n // blocks)
    padded = blocks * rows
    if mask is not None:
        mask = jnp.broadcast_to(mask, (b, h, *mask.shape[2:]))
        mask = _pad(mask, padded) if mask.shape[2] > 1 else mask
    query = _pad(jnp.swapaxes(query, 1, 2) * d**-0.5, padded)
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    out = _attention(query, key, value, mask, causal, rows, serial)
    return jnp.swapaxes(out[:, :, :n], 1, 2).astype(value.dtype)


def _pad(x: Array, rows: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, rows - x.shape[2]), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attention(
    q: Array, k: Array, v: Array, mask: Array | None, causal: bool, rows: int, serial: bool
) -> Array:
    return _forward(q, k, v, mask, causal, rows, serial)[0]


def _forward(
    q: Array, k: Array, v: Array, mask: Array | None, causal: bool, rows: int, serial: bool
) -> tuple[Array, Any]:
    """Returns the result, and the values for the backward pass. Arrays are (b, h, n, d)."""

    def head(q: Array, kt: Array, v: Array, mask: Array | None) -> tuple[Array, Array, Array]:
        def block(x: Any) -> tuple[Array, Array, Array]:
            number, q, mask = x
            scores = _hide(_matmul(q, kt), mask, number if causal else None, _NEVER)
            top = scores.max(axis=-1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = weights.sum(axis=-1, keepdims=True)
            return _matmul(weights.astype(v.dtype), v) / total, top, total

        return jax.lax.map(block, (_numbers(q, rows), _cut(q, rows), _cut_mask(mask, q, rows)))

    results = _each_head(serial)(head)(q, jnp.swapaxes(k, 2, 3), v, mask)
    out, top, total = (_joined(x) for x in results)
    kept = tuple(checkpoint_name(x, "attention") for x in (out.astype(v.dtype), top, total))
    return kept[0], (q, k, v, mask, *kept)


def _backward(causal: bool, rows: int, serial: bool, kept: Any, d_out: Array) -> Any:
    """Returns the gradients of queries, keys and values.

    No narrow matrix is transposed inside a loop, because a CPU multiplies it three times slower.
    Sums over queries therefore have the shape (d, m).
    """
    q, k, v, mask, out, top, total = kept
    delta = jnp.sum(out.astype(jnp.float32) * d_out, axis=-1, keepdims=True)

    def head(k: Array, kt: Array, vt: Array, mask: Array | None, row_values: Any) -> Any:
        def block(sums: tuple[Array, Array], x: Any) -> Any:
            number, mask, q, qt, d_out, d_out_t, top, total, delta = x
            hide = functools.partial(_hide, mask=mask, block=number if causal else None)
            weights = jnp.exp(hide(_matmul(q, kt), value=_NEVER) - top) / total
            d_scores = hide(weights * (_matmul(d_out, vt) - delta), value=0).astype(q.dtype)
            d_kt = sums[0] + _matmul(qt, d_scores)
            d_vt = sums[1] + _matmul(d_out_t, weights.astype(q.dtype))
            return (d_kt, d_vt), _matmul(d_scores, k)

        q, d_out, *others = row_values
        qs, d_outs = _cut(q, rows), _cut(d_out, rows)
        turned = (jnp.swapaxes(qs, 1, 2), jnp.swapaxes(d_outs, 1, 2))
        values = (qs, turned[0], d_outs, turned[1], *(_cut(x, rows) for x in others))
        zeros = jnp.zeros(kt.shape, jnp.float32)
        masks = _cut_mask(mask, q, rows)
        return jax.lax.scan(block, (zeros, zeros), (_numbers(q, rows), masks, *values))

    kt, vt = jnp.swapaxes(k, 2, 3), jnp.swapaxes(v, 2, 3)
    row_values = (q, d_out.astype(q.dtype), top, total, delta)
    (d_kt, d_vt), d_q = _each_head(serial)(head)(k, kt, vt, mask, row_values)
    d_k, d_v = jnp.swapaxes(d_kt, 2, 3), jnp.swapaxes(d_vt, 2, 3)
    return _joined(d_q).astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attention.defvjp(_forward, _backward)


def _each_head(serial: bool) -> Callable[..., Callable[..., Any]]:
    """Returns a transformation of a function of one head into one of all samples and heads."""

    def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: jax.lax.map(lambda rest: function(*rest), args)

    over = one_by_one if serial else jax.vmap
    return lambda function: over(over(function))


def _hide(scores: Array, mask: Array | None, block: Array | None, value: float) -> Array:
    """Puts `value` at hidden keys. `block` is the number of the block if attention is causal."""
    if mask is not None:
        scores = jnp.where(mask, scores, value)
    if block is not None:
        row = block * scores.shape[0] + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        column = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        scores = jnp.where(row >= column, scores, value)
    return scores


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _numbers(q: Array, rows: int) -> Array:
    return jnp.arange(q.shape[0] // rows)


def _cut(x: Array, rows: int) -> Array:
    return x.reshape(-1, rows, x.shape[-1])


def _joined(x: Array) -> Array:
    """Reshapes (b, h, blocks, rows, c) to (b, h, n, c)."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _cut_mask(mask: Array | None, q: Array, rows: int) -> Array | None:
    """Returns the masks of the blocks. A mask with a single row is repeated for all blocks."""
    if mask is None:
        return None
    if mask.shape[0] == 1:
        return jnp.broadcast_to(mask, (q.shape[0] // rows, *mask.shape))
    return _cut(mask, rows)
