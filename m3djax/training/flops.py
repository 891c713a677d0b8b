"""Counting the floating point operations of a model, and what the devices could do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from m3djax.contracts.task import Task, loss_of
from m3djax.inputs.inputs import Inputs
from m3djax.params import FlatParams, flatten, split, unflatten

if TYPE_CHECKING:
    from m3djax.adapters import Adapted

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


def model_flops(
    task: Task | Adapted, spec: Mapping[str, jax.ShapeDtypeStruct], trainable: str = ".*"
) -> int:
    """FLOPs that one step of a model is worth: forward, and the gradients that are needed.

    A product's backward pass is one more product for each factor that depends on something
    trained: two in the middle of a model, one beside a frozen weight or at the very input. What is
    computed again to save memory is not work of the model.

    Args:
      task: the task.
      spec: shapes of a batch.
      trainable: regex of the paths of the parameters that are trained, as in `Experiment`.
    """
    rows = next(iter(spec.values())).shape[0]
    shapes = jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0), spec)
    spec = jax.eval_shape(Inputs(), dict(spec))  # their range changes no shape
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))

    def loss(trained: FlatParams, frozen: FlatParams, *rest: Any) -> jax.Array:
        return loss_of(task, unflatten(trained | frozen), *rest, train=True).total

    trained, frozen = split(flatten(shapes), trainable)
    jaxpr = jax.make_jaxpr(loss)(trained, frozen, spec, keys).jaxpr
    varied = [number < len(trained) for number in range(len(jaxpr.invars))]
    return count_jaxpr(jaxpr) + _backward(jaxpr, varied)[0]


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
    return sum(_count(equation, tile) for equation in _used(jaxpr))


def _count(equation: core.JaxprEqn, tile: int = 1) -> int:
    """FLOPs of one equation and of the jaxprs that it holds."""
    name, options = equation.primitive.name, equation.params
    if name in _PRODUCTS:
        return _PRODUCTS[name](equation, tile)
    if name.startswith("dot_product_attention_"):  # cuDNN's: query, key, value, ...
        (b, n, h, d), m = _shape(equation.invars[0]), _shape(equation.invars[1])[1]
        # Forward: scores and their mix. Backward: the scores again, then two products each.
        return 2 * b * h * n * m * d * (5 if "bwd" in name else 2)
    inner = [count_jaxpr(each, tile) for each in _inner(options)]
    return _times(name, options) * (max(inner) if name == "cond" else sum(inner))


def _backward(jaxpr: core.Jaxpr, varied: Sequence[bool]) -> tuple[int, list[bool]]:
    """FLOPs of the products that a backward pass adds.

    Args:
      jaxpr: the forward pass.
      varied: which of its arguments depend on something trained.

    Returns:
      The FLOPs, and which of its results depend on something trained.
    """
    known: dict[int, bool] = {id(v): on for v, on in zip(jaxpr.invars, varied, strict=True)}
    total = 0
    for equation in reversed(_used(jaxpr)):
        ins = [known.get(id(variable), False) for variable in equation.invars]
        work, outs = _backward_of(equation, ins)
        total += work
        for variable, on in zip(equation.outvars, outs, strict=True):
            known[id(variable)] = on and jnp.issubdtype(variable.aval.dtype, jnp.inexact)  # type: ignore[attr-defined]
    return total, [known.get(id(variable), False) for variable in jaxpr.outvars]


def _backward_of(equation: core.JaxprEqn, ins: list[bool]) -> tuple[int, list[bool]]:
    name, options = equation.primitive.name, equation.params
    every = [any(ins) and name != "stop_gradient"] * len(equation.outvars)
    if not any(ins) or name in ("stop_gradient", "while"):  # a `while` has no backward pass
        return 0, every
    if name in _PRODUCTS:
        return sum(ins[:2]) * _PRODUCTS[name](equation, 1), every
    inner = _inner(options)
    if name.startswith("dot_product_attention_") or name == "pallas_call":
        return 2 * _count(equation), every
    if name == "scan":
        return _backward_of_scan(equation, ins)
    if name == "cond":
        found = [_backward(branch, ins[1:]) for branch in inner]
        outs = [any(each) for each in zip(*(outs for _, outs in found), strict=True)]
        return max(work for work, _ in found), outs
    if len(inner) != 1:
        return 0, every
    work, outs = _backward(inner[0], ins)
    return _times(name, options) * work, outs


def _backward_of_scan(equation: core.JaxprEqn, ins: list[bool]) -> tuple[int, list[bool]]:
    """What is carried depends on something trained as soon as one turn makes it do so."""
    (body,), options = _inner(equation.params), equation.params
    first, carried = options["num_consts"], options["num_carry"]
    while True:
        work, outs = _backward(body, ins)
        grown = [a or b for a, b in zip(ins[first : first + carried], outs, strict=False)]
        if grown == ins[first : first + carried]:
            return options["length"] * work, outs
        ins = [*ins[:first], *grown, *ins[first + carried :]]


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


def _convolution(equation: core.JaxprEqn, tile: int) -> int:
    kernel, numbers = _shape(equation.invars[1]), equation.params["dimension_numbers"]
    out = _shape(equation.outvars[0])
    features, depth = kernel[numbers.rhs_spec[0]], math.prod(kernel)
    rows = math.prod(out) // features
    return _product(rows, features, depth // features, tile)


_PRODUCTS = {"dot_general": _dot, "conv_general_dilated": _convolution}


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
