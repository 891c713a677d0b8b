"""Attention: one function with several implementations.

    xla      the textbook form; scores of all heads are materialised
    blocked  a block of queries at a time, recomputed in the backward pass (any platform)
    splash   a Pallas kernel for TPU
    cudnn    NVIDIA's kernel for bfloat16 and float16

Tests check that all of them are equal, forward and backward. The implementation is chosen during
tracing, by the platform of the current mesh. A program that a CPU compiles for a TPU therefore has
the implementation of the TPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from data_pipelines.errors import ConfigError
from m3djax.mesh import sharding
from m3djax.models.attention.blocked import blocked_attention

Implementation = Literal["auto", "xla", "blocked", "splash", "cudnn"]
# With fewer keys or queries the scores are small, and "xla" is the fastest implementation.
_FUSED_FROM = {"tpu": 256, "gpu": 128, "cpu": 512}

__all__ = ["Implementation", "choose", "dot_product_attention"]


def dot_product_attention(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b m k d"],
    value: Float[Array, "b m k d"],
    mask: Bool[Array, "#b #h #n m"] | None = None,
    *,
    causal: bool = False,
    implementation: Implementation = "auto",
) -> Float[Array, "b n h d"]:
    """Computes softmax attention scaled by 1/sqrt(d). The softmax is float32 for any input dtype.

    Args:
      query: queries.
      key: keys; each of the k heads is shared by h / k heads of the queries.
      value: values.
      mask: True where a query may attend to a key; broadcast over samples, heads and queries. A
        mask of keys alone is (b, 1, 1, m). The result of a query without visible keys is finite
        and has no meaning.
      causal: token i sees only tokens up to i; needs as many keys as queries.
      implementation: "auto" picks one by platform, length and mask.

    Raises:
      ConfigError: heads, lengths or mask do not fit, or the implementation does not support them.
    """
    _check(query, key, mask, causal)
    platform = _platform()
    if implementation == "auto":
        implementation = choose(platform, query, key, mask)
    function: Callable[..., Array]
    if implementation == "splash":
        from m3djax.models.attention.splash import splash_attention  # Pallas is slow to import

        function = functools.partial(splash_attention, causal=causal, interpret=platform != "tpu")
    elif implementation == "blocked":
        # One head at a time fits the caches of a CPU. Other devices are faster with all heads.
        function = functools.partial(blocked_attention, causal=causal, serial=platform == "cpu")
    else:
        library: Literal["xla", "cudnn"] = "cudnn" if implementation == "cudnn" else "xla"
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=causal, implementation=library
        )
    return _per_device(function, query, key, value, mask)


def choose(platform: str, query: Array, key: Array, mask: Array | None) -> Implementation:
    """Returns the implementation for these arrays on a platform: "cpu", "gpu" or "tpu"."""
    *_, d = query.shape
    if min(query.shape[1], key.shape[1]) < _FUSED_FROM[platform]:
        return "xla"
    if platform == "tpu" and (mask is None or mask.shape[1:3] == (1, 1)):
        return "splash"
    # cuDNN's backward pass supports heads up to 128 wide on all cards that have it.
    if platform == "gpu" and query.dtype.itemsize == 2 and d % 8 == 0 and d <= 128:
        return "cudnn"
    return "blocked"


def _platform() -> str:
    """Returns the platform of the current mesh or, without a mesh, of the process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = device.platform if device else jax.default_backend()
    return "gpu" if platform in ("cuda", "rocm") else platform


def _check(query: Array, key: Array, mask: Array | None, causal: bool) -> None:
    (b, n, h, _), (_, m, k, _) = query.shape, key.shape
    if h % k:
        raise ConfigError(
            f"{h} heads of queries cannot share {k} heads of keys. "
            f"Cure: a number of heads of keys that divides {h}."
        )
    if causal and n != m:
        raise ConfigError(
            f"causal attention of {n} queries to {m} keys: it needs equal numbers. "
            "Cure: give a mask instead."
        )
    if mask is not None:
        fits = all(size in (1, full) for size, full in zip(mask.shape, (b, h, n, m), strict=True))
        if not fits or mask.shape[3] != m:
            raise ConfigError(f"mask of shape {mask.shape} does not fit {(b, h, n, m)}.")


def _per_device(
    function: Callable[..., Array], query: Array, key: Array, value: Array, mask: Array | None
) -> Array:
    """Runs `function` on each device for the device's own samples and heads.

    The partitioner cannot split loops and kernels. By default it would gather all inputs.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not mesh.are_all_axes_auto:
        return function(query, key, value, mask)
    groups = query.shape[2] // key.shape[2]
    if groups > 1 and key.shape[2] % mesh.shape["tensor"]:
        # The devices cannot split the heads of keys, so each head of queries gets its own copy.
        key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
    axes = ("batch", None, "heads", None)
    q_spec, kv_spec = (sharding.activation_spec(x.shape, axes) for x in (query, key))
    arguments, specs = [query, key, value], [q_spec, kv_spec, kv_spec]
    if mask is None:
        function = functools.partial(function, mask=None)
    else:
        batch, _, heads, _ = q_spec
        b, h, *_ = mask.shape
        arguments.append(mask)
        specs.append(jax.P(batch if b > 1 else None, heads if h > 1 else None, None, None))
    # check_vma is off: Pallas kernels do not declare the axes over which their results vary.
    split = jax.shard_map(function, in_specs=tuple(specs), out_specs=q_spec, check_vma=False)
    return split(*arguments)
