"""Counting the floating point operations of a model, and what the devices could do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

if TYPE_CHECKING:
    from m3djax.tasks.base import Task

# Dense bfloat16 peak per chip in FLOP/s, from the vendors' data sheets.
_PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
}


def count(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of all matrix products in `function`, loop bodies times their length.

    XLA's own cost analysis counts the body of a scan once, so the jaxpr is walked instead.
    """
    return count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def model_flops(task: Task, spec: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    """FLOPs that one step of a model is worth: forward, and twice that for the backward pass.

    What is computed again to save memory is not work of the model.
    """
    rows = next(iter(spec.values())).shape[0]
    shapes = jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0), spec)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    return 3 * count(lambda *args: task.loss(*args, train=True).total, shapes, spec, keys)


def peak(mesh: jax.sharding.Mesh) -> float:
    """Peak FLOP/s of all devices: from data sheets or, for CPUs, measured here in float32."""
    try:
        return data_sheet(mesh.devices.flat[0].device_kind) * mesh.devices.size
    except KeyError:
        return _measured_peak(mesh)


def data_sheet(device_kind: str) -> float:
    """Dense bfloat16 FLOP/s of a device; KeyError if it is not known."""
    for kind, value in sorted(_PEAK.items(), key=lambda item: -len(item[0])):
        if device_kind.startswith(kind):
            return value
    raise KeyError(device_kind)


def _measured_peak(mesh: jax.sharding.Mesh, side: int = 1024) -> float:
    rows = NamedSharding(mesh, P(mesh.axis_names))
    x = jax.device_put(jnp.ones((mesh.devices.size * side, side)), rows)
    y = jax.device_put(jnp.ones((side, side)), NamedSharding(mesh, P()))
    product = jax.jit(jnp.matmul, out_shardings=rows).lower(x, y).compile()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(x, y))
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 * mesh.devices.size / min(seconds)


def count_jaxpr(jaxpr: core.Jaxpr, tile: int = 1) -> int:
    """FLOPs of all matrix products that a jaxpr runs, on all devices together.

    Of a `cond` the larger branch counts; of a `while`, whose length nobody knows, one turn; of what
    nobody uses, nothing, as the compiler drops it.

    Args:
      jaxpr: the program; of one that shards itself (`shard_map`), all shards count.
      tile: side of the matrix unit that products are padded to: the contracted dimension and one
        of the two others, whichever is cheaper to pad; the third needs a tile's length at least.
        Products with a single row or column do not use it. Dimensions are those before sharding,
        so what a mesh cuts narrower than a tile is not seen.
    """
    total = 0
    for equation in _used(jaxpr):
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation, tile)
        elif name == "conv_general_dilated":
            kernel, numbers = _shape(equation.invars[1]), params["dimension_numbers"]
            out = _shape(equation.outvars[0])
            features, depth = kernel[numbers.rhs_spec[0]], math.prod(kernel)
            rows = math.prod(out) // features
            total += _product(rows, features, depth // features, tile)
        elif name.startswith("dot_product_attention_"):  # cuDNN's: query, key, value, ...
            (b, n, h, d), m = _shape(equation.invars[0]), _shape(equation.invars[1])[1]
            # Forward: scores and their mix. Backward: the scores again, then two products each.
            total += 2 * b * h * n * m * d * (5 if "bwd" in name else 2)
            continue
        inner = [count_jaxpr(each, tile) for each in _inner(params)]
        total += _times(name, params) * (max(inner) if name == "cond" else sum(inner))
    return total


def _used(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """Equations whose results are returned or used, or that have effects."""
    wanted = {id(variable) for variable in jaxpr.outvars}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(variable) in wanted for variable in equation.outvars):
            wanted.update(id(variable) for variable in equation.invars)
            kept.append(equation)
    return kept


def _times(name: str, params: Mapping[str, Any]) -> int:
    """How often an equation runs the jaxprs that it holds."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _dot(equation: core.JaxprEqn, tile: int) -> int:
    (contract, _), (batch, _) = equation.params["dimension_numbers"]
    left, right = (_shape(variable) for variable in equation.invars)
    depth = math.prod(left[axis] for axis in contract)
    many = math.prod(left[axis] for axis in batch)
    rows = math.prod(left) // (many * depth) if many * depth else 0
    columns = math.prod(right) // (many * depth) if many * depth else 0
    return many * _product(rows, columns, depth, tile)


def _product(rows: int, columns: int, depth: int, tile: int) -> int:
    """FLOPs of one matrix product on a matrix unit of this side."""

    def padded(side: int) -> int:
        return -(-side // tile) * tile

    if min(rows, columns) == 1:
        return 2 * rows * columns * depth
    one = max(rows, tile) * padded(columns)
    other = padded(rows) * max(columns, tile)
    return 2 * padded(depth) * min(one, other)


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    """The jaxprs that an equation holds, whatever its parameters call them."""
    jaxprs = []
    for value in params.values():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                jaxprs.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                jaxprs.append(item)
    return jaxprs


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
