"""FLOP counts of a model, and the peak FLOP/s of the devices."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipelines.fields.base import Spatial
from m3djax.contracts.task import Task, loss_of
from m3djax.inputs.inputs import IMAGE, Inputs
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
    """Counts the FLOPs of all matrix products in `function`; a loop counts its body once per turn.

    XLA's own cost analysis counts the body of a scan only once. This function walks the jaxpr.
    """
    return count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def model_flops(
    task: Task | Adapted,
    spec: Mapping[str, jax.ShapeDtypeStruct],
    trainable: str = ".*",
    spatial: Mapping[str, Spatial] = IMAGE,
) -> int:
    """Counts the model FLOPs of one training step: the forward pass and the needed gradients.

    The backward pass of a matrix product has one product for each factor that depends on a
    trained parameter: two in the middle of a model, one beside a frozen weight or at the input.
    Rematerialised activations do not count.

    Args:
      task: the task.
      spec: shapes of a batch.
      trainable: regex of the paths of the trained parameters, as in `Experiment`.
      spatial: kind and axes of each spatial array; see `Data.spatial`.
    """
    rows = next(iter(spec.values())).shape[0]
    shapes = jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0), spec)
    inputs = Inputs().bound(spatial)  # the intensity range changes no shape
    spec = jax.eval_shape(inputs, dict(spec))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))

    def loss(trained: FlatParams, frozen: FlatParams, *rest: Any) -> jax.Array:
        return loss_of(task, unflatten(trained | frozen), *rest, train=True).total

    trained, frozen = split(flatten(shapes), trainable)
    jaxpr = jax.make_jaxpr(loss)(trained, frozen, spec, keys).jaxpr
    varied = [number < len(trained) for number in range(len(jaxpr.invars))]
    return count_jaxpr(jaxpr) + _backward(jaxpr, varied)[0]


def peak(mesh: jax.sharding.Mesh) -> float:
    """Returns the peak FLOP/s of all devices: from data sheets, or measured in float32.

    Devices that the data sheets do not list, such as CPUs, are measured.
    """
    try:
        return data_sheet(mesh.devices.flat[0].device_kind) * mesh.devices.size
    except KeyError:
        return _measured_peak(tuple(mesh.devices.flat))


def data_sheet(device_kind: str) -> float:
    """Returns the dense bfloat16 FLOP/s of a kind of device.

    Raises:
      KeyError: the kind is not in the table.
    """
    for kind, value in sorted(_PEAK.items(), key=lambda item: -len(item[0])):
        if device_kind.startswith(kind):
            return value
    raise KeyError(device_kind)


@functools.lru_cache
def _measured_peak(devices: tuple[jax.Device, ...], side: int = 1024) -> float:
    mesh = jax.sharding.Mesh(devices, ("all",))
    rows = NamedSharding(mesh, P("all"))
    x = jax.device_put(jnp.ones((len(devices) * side, side)), rows)
    y = jax.device_put(jnp.ones((side, side)), NamedSharding(mesh, P()))
    product = jax.jit(jnp.matmul, out_shardings=rows).lower(x, y).compile()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(x, y))
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 * len(devices) / min(seconds)


def count_jaxpr(jaxpr: core.Jaxpr, tile: int = 1) -> int:
    """Counts the FLOPs of all matrix products in a jaxpr, on all devices together.

    A `cond` counts its larger branch. A `while` counts one turn, because its length is unknown.
    Unused results count nothing, because the compiler drops them.

    Args:
      jaxpr: the program. In a `shard_map`, all shards count.
      tile: side of the matrix unit, to which products are padded. The contracted dimension is
        padded, and the cheaper one of the two others; the third takes at least one tile. Products
        with a single row or column do not use the unit. Dimensions are those before sharding, so
        shards narrower than a tile are not noticed.
    """
    return sum(_count(equation, tile) for equation in _used(jaxpr))


def _count(equation: core.JaxprEqn, tile: int = 1) -> int:
    """Counts the FLOPs of one equation and of the jaxprs inside it."""
    name, options = equation.primitive.name, equation.params
    if name in _PRODUCTS:
        return _PRODUCTS[name](equation, tile)
    if name.startswith("dot_product_attention_"):  # cuDNN's: query, key, value, ...
        (b, n, h, d), m = _shape(equation.invars[0]), _shape(equation.invars[1])[1]
        # Forward: the scores, and the weighted sum of the values. Backward: the scores again,
        # then two products for each.
        return 2 * b * h * n * m * d * (5 if "bwd" in name else 2)
    inner = [count_jaxpr(each, tile) for each in _inner(options)]
    return _times(name, options) * (max(inner) if name == "cond" else sum(inner))


def _backward(jaxpr: core.Jaxpr, varied: Sequence[bool]) -> tuple[int, list[bool]]:
    """Counts the FLOPs of the matrix products that the backward pass adds.

    Args:
      jaxpr: the forward pass.
      varied: for each argument, whether it depends on a trained parameter.

    Returns:
      The FLOPs; for each result, whether it depends on a trained parameter.
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
    """Counts a scan: repeats its body until the set of carried values with gradients is stable."""
    (body,), options = _inner(equation.params), equation.params
    first, carried = options["num_consts"], options["num_carry"]
    while True:
        work, outs = _backward(body, ins)
        grown = [a or b for a, b in zip(ins[first : first + carried], outs, strict=False)]
        if grown == ins[first : first + carried]:
            return options["length"] * work, outs
        ins = [*ins[:first], *grown, *ins[first + carried :]]


def _used(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """Returns the equations with effects, and those whose results are used or returned."""
    wanted = {id(variable) for variable in jaxpr.outvars}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(variable) in wanted for variable in equation.outvars):
            wanted.update(id(variable) for variable in equation.invars)
            kept.append(equation)
    return kept


def _times(name: str, params: Mapping[str, Any]) -> int:
    """Returns how often an equation runs the jaxprs inside it."""
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
    """Counts the FLOPs of one matrix product on a matrix unit with side `tile`."""

    def padded(side: int) -> int:
        return -(-side // tile) * tile

    if min(rows, columns) == 1:
        return 2 * rows * columns * depth
    one = max(rows, tile) * padded(columns)
    other = padded(rows) * max(columns, tile)
    return 2 * padded(depth) * min(one, other)


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    """Returns the jaxprs inside an equation, whatever its parameters call them."""
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
