"""Counting the floating point operations of a model, and what the devices could do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

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
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def peak(mesh: jax.sharding.Mesh) -> float:
    """Peak FLOP/s of all devices: from data sheets or, for CPUs, measured here in float32."""
    device = mesh.devices.flat[0]
    for kind, value in sorted(_PEAK.items(), key=lambda item: -len(item[0])):
        if device.device_kind.startswith(kind):
            return value * mesh.devices.size
    return _measured_peak(mesh)


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


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contract, _), _ = params["dimension_numbers"]
            depth = math.prod(_shape(equation.invars[0])[axis] for axis in contract)
            total += 2 * math.prod(_shape(equation.outvars[0])) * depth
        elif name == "conv_general_dilated":
            kernel, numbers = _shape(equation.invars[1]), params["dimension_numbers"]
            depth = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            total += 2 * math.prod(_shape(equation.outvars[0])) * depth
        times = params["length"] if name == "scan" else 1
        total += times * sum(_count(inner) for inner in _inner(params))
    return total


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
