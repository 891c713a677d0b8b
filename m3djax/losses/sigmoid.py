"""The pairwise sigmoid loss in two forms: dense, and a ring with O(b d) memory per device."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from data_pipelines.errors import ConfigError
from m3djax.mesh.sharding import MESH_AXES, constrain

Features = Float[Array, "b d"]
Ids = Int[Array, " b"]
Valid = Bool[Array, " b"]
Number = Float[Array, ""]


def dense_sigmoid_loss(
    images: Features, texts: Features, ids: Ids, valid: Valid, scale: Number, bias: Number
) -> Number:
    """Returns the sum over pairs of -log sigmoid(z (scale * cosine + bias)).

    z is +1 for equal ids, else -1. This plain form holds all B x B logits, split over rows.
    `ring_sigmoid_loss` computes the same values; for the arguments see there.
    """
    images = constrain(images.astype(jnp.float32), ("batch", None))
    logits = constrain(scale * images @ texts.astype(jnp.float32).T + bias, ("batch", None))
    label = _label(ids, valid, ids, valid)
    return -jnp.sum(jnp.abs(label) * jax.nn.log_sigmoid(label * logits))


def ring_sigmoid_loss(
    images: Features,
    texts: Features,
    ids: Ids,
    valid: Valid,
    scale: Number,
    bias: Number,
    *,
    block: int = 1024,
) -> Number:
    """Returns the value of `dense_sigmoid_loss`, without the B x B logits in memory.

    Each device keeps its images and passes its texts on to the next device, until every device has
    seen all texts (arXiv 2303.15343, section 3.3). The backward pass goes round once more. The
    gradients of the texts travel with the texts until both are back at their own device. No visited
    texts are stored, so a device holds a few (b, d) arrays and one block of logits.

    Args:
      images: unit vectors; rows are split over the mesh's batch axes.
      texts: unit vectors; rows are split likewise.
      ids: equal for equal captions.
      valid: False for rows to leave out.
      scale: factor on the cosines.
      bias: added to the scaled cosines.
      block: limit on the columns of logits that are computed at a time. The largest divisor of a
        device's rows within the limit is taken.

    Raises:
      ConfigError: the batch cannot be split over the mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else tuple(a for a in MESH_AXES["batch"] if mesh.shape[a] > 1)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if len(images) % devices:
        raise ConfigError(
            f"a batch of {len(images)} cannot be split over {devices} devices. "
            f"Cure: a batch size that is a multiple of {devices}."
        )
    rows = len(images) // devices
    columns = max(size for size in range(1, min(block, rows) + 1) if rows % size == 0)
    ring = _Ring(axes, devices, rows // columns)
    images, texts = images.astype(jnp.float32), texts.astype(jnp.float32)
    return _sum_over_pairs(ring, images, texts, ids, valid, scale, bias)


@dataclasses.dataclass(frozen=True)
class _Ring:
    """A ring of devices that pass arrays on to their neighbours.

    Attributes:
      axes: mesh axes of the ring; () for a single device.
      devices: number of devices.
      blocks: number of blocks that a device's texts are split into.
    """

    axes: tuple[str, ...]
    devices: int
    blocks: int

    def run(self, function: Callable[..., Any], rows: Any, numbers: Any, out: Any) -> Any:
        """Runs `function(rows, numbers)` on each device, with its part of all arrays in `rows`."""
        if not self.axes:
            return function(rows, numbers)
        specs = (P(self.axes), P())
        # check_vma is off: the only replicated results are sums, and `total` replicates them.
        mapped = jax.shard_map(function, in_specs=specs, out_specs=out, check_vma=False)
        return mapped(rows, numbers)

    def round(self, body: Callable[[Any, Any], tuple[Any, Any]], kept: Any, passed: Any) -> Any:
        """Applies `body` to `kept` and `passed` once per device, and returns both.

        `passed` moves to the next device after each call. At the end it is back at its own device.
        """

        def visit(_: int, state: tuple[Any, Any]) -> tuple[Any, Any]:
            kept, passed = body(*state)
            return kept, jax.tree.map(self._pass_on, passed)

        return jax.lax.fori_loop(0, self.devices, visit, (kept, passed))

    def total(self, value: Number) -> Number:
        """Returns the sum over all devices."""
        return jax.lax.psum(value, self.axes) if self.axes else value

    def split(self, arrays: Any) -> Any:
        """Returns the rows in blocks along a new first axis."""
        return jax.tree.map(lambda x: x.reshape(self.blocks, -1, *x.shape[1:]), arrays)

    def _pass_on(self, array: Array) -> Array:
        if not self.axes:
            return array
        pairs = [(n, (n + 1) % self.devices) for n in range(self.devices)]
        return jax.lax.ppermute(array, self.axes, pairs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_over_pairs(
    ring: _Ring,
    images: Features,
    texts: Features,
    ids: Ids,
    valid: Valid,
    scale: Number,
    bias: Number,
) -> Number:
    def on_device(rows: tuple[Array, ...], numbers: tuple[Array, Array]) -> Array:
        (images, texts, ids, valid), (scale, bias) = rows, numbers

        def block(total: Array, guest: tuple[Array, ...]) -> tuple[Array, None]:
            label = _label(ids, valid, *guest[1:])
            loss = jax.nn.log_sigmoid(label * (scale * images @ guest[0].T + bias))
            return total - jnp.sum(jnp.abs(label) * loss), None

        def visit(total: Array, guest: tuple[Array, ...]) -> tuple[Array, Any]:
            return jax.lax.scan(block, total, ring.split(guest))[0], guest

        return ring.total(ring.round(visit, jnp.float32(0), (texts, ids, valid))[0])

    return ring.run(on_device, (images, texts, ids, valid), (scale, bias), P())


def _forward(ring: _Ring, *inputs: Array) -> tuple[Number, tuple[Array, ...]]:
    return _sum_over_pairs(ring, *inputs), inputs


def _backward(
    ring: _Ring, inputs: tuple[Array, ...], cotangent: Number
) -> tuple[Array | None, ...]:
    def on_device(rows: tuple[Array, ...], numbers: tuple[Array, Array]) -> tuple[Array, ...]:
        (images, texts, ids, valid), (scale, bias) = rows, numbers

        def block(sums: tuple[Array, ...], guest: tuple[Array, ...]) -> tuple[Any, Array]:
            cosines, label = images @ guest[0].T, _label(ids, valid, *guest[1:])
            # d/dl of -log sigmoid(z l) is -z sigmoid(-z l).
            slope = -label * jax.nn.sigmoid(-label * (scale * cosines + bias))
            to_images, to_scale, to_bias = sums
            sums = (
                to_images + slope @ guest[0],
                to_scale + jnp.sum(slope * cosines),
                to_bias + jnp.sum(slope),
            )
            return sums, slope.T @ images

        def visit(sums: Any, guest: tuple[Array, ...]) -> tuple[Any, Any]:
            *data, to_texts = guest
            sums, more = jax.lax.scan(block, sums, ring.split(tuple(data)))
            return sums, (*data, to_texts + more.reshape(to_texts.shape))

        start = (jnp.zeros_like(images), jnp.float32(0), jnp.float32(0))
        guest = (texts, ids, valid, jnp.zeros_like(texts))
        sums, (*_, to_texts) = ring.round(visit, start, guest)
        return scale * sums[0], scale * to_texts, ring.total(sums[1]), ring.total(sums[2])

    out = (P(ring.axes), P(ring.axes), P(), P())
    grads = ring.run(on_device, inputs[:4], inputs[4:], out)
    to_images, to_texts, to_scale, to_bias = (cotangent * grad for grad in grads)
    return to_images, to_texts, None, None, to_scale, to_bias


_sum_over_pairs.defvjp(_forward, _backward)


def _label(ids: Ids, valid: Valid, other_ids: Ids, other_valid: Valid) -> Float[Array, "b c"]:
    """Returns +1 for equal ids, -1 for different ids, and 0 for pairs with an invalid row."""
    label = jnp.where(ids[:, None] == other_ids[None, :], 1.0, -1.0)
    return jnp.where(valid[:, None] & other_valid[None, :], label, 0.0)
