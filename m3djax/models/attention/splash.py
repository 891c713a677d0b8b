"""JAX's splash attention (Pallas, for TPU) behind the interface of `dot_product_attention`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Bool, Float

from data_pipelines.errors import ConfigError

_LANES = 128
# Larger blocks of keys need fewer passes over the queries. 1408 is half of E3D-GPT's 2,744 tokens,
# rounded up to whole lanes.
_QUERY_BLOCK, _KEY_BLOCK = 512, 1408


def splash_attention(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b m k d"],
    value: Float[Array, "b m k d"],
    mask: Bool[Array, "#b 1 1 m"] | None = None,
    *,
    causal: bool = False,
    interpret: bool = False,
) -> Float[Array, "b n h d"]:
    """Computes attention; see `dot_product_attention`.

    Args:
      query: queries.
      key: keys.
      value: values.
      mask: True for visible keys.
      causal: token i sees only tokens up to i.
      interpret: whether to interpret the kernel without a TPU, which is slow.

    Raises:
      ConfigError: the mask differs between queries or heads.
    """
    (b, n, h, d), m = query.shape, key.shape[1]
    if mask is not None and mask.shape[1:3] != (1, 1):
        raise ConfigError(
            f"splash attention takes masks of keys, (b, 1, 1, m), not {mask.shape}. "
            "Cure: implementation 'blocked' or 'xla'."
        )
    block_q, padded_n = _blocks(n, _QUERY_BLOCK)
    block_kv, padded_m = _blocks(m, _KEY_BLOCK)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([_mask((padded_n, padded_m), causal)] * h),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=_block_sizes(block_q, block_kv),
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    segments = None
    if mask is not None or padded_m != m:
        seen = jnp.ones((b, m), bool) if mask is None else jnp.broadcast_to(mask[:, 0, 0], (b, m))
        segments = _segments(seen, padded_n, padded_m, causal)
    query, key, value = (
        jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)))
        for x, length in ((query * d**-0.5, padded_n), (key, padded_m), (value, padded_m))
    )
    out = jax.vmap(kernel)(query, key, value, segments)
    return jnp.swapaxes(out[:, :, :n], 1, 2)


def _segments(seen: Array, n: int, m: int, causal: bool) -> splash.SegmentIds:
    """Returns the segment ids that encode a mask of keys.

    Visible keys have id 1, hidden keys 0 and padding -1. A query attends to keys with its own id.
    Queries have id 1. A query without visible keys has id 0 and attends to hidden keys, because the
    kernel would divide by zero otherwise.
    """
    any_seen = jnp.cumsum(seen, axis=1) > 0 if causal else seen.any(axis=1, keepdims=True)
    if causal:
        queries = jnp.pad(any_seen, ((0, 0), (0, n - seen.shape[1])), mode="edge")
    else:
        queries = jnp.broadcast_to(any_seen, (seen.shape[0], n))
    keys = jnp.pad(seen.astype(jnp.int32), ((0, 0), (0, m - seen.shape[1])), constant_values=-1)
    return splash.SegmentIds(queries.astype(jnp.int32), keys)


def _blocks(length: int, limit: int) -> tuple[int, int]:
    """Returns the size of equal blocks of whole lanes, and the padded length of all blocks."""
    count = -(-length // limit)
    block = -(-length // (count * _LANES)) * _LANES
    return block, count * block


def _mask(shape: tuple[int, int], causal: bool) -> splash.Mask:
    return splash.CausalMask(shape) if causal else splash.FullMask(shape)


def _block_sizes(block_q: int, block_kv: int) -> splash.BlockSizes:
    """Returns block sizes that are the same for all kernels.

    The backward pass uses two kernels instead of the fused one, which writes a partial gradient of
    the queries for each block of keys.
    """
    return splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
