"""Compiling real programs for devices that are not there."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax
from jax.stages import Compiled, Traced

from data_pipelines.errors import ConfigError
from m3djax import sharding
from m3djax.plan.targets import Target
from m3djax.plan.topology import Topology


class OutOfMemory(Exception):
    """The compiler refuses a program that does not fit.

    Attributes:
      needed: bytes per device that it would take.
    """

    def __init__(self, needed: int) -> None:
        self.needed = needed
        super().__init__(f"the step needs {needed / 2**30:.2f} GiB per device")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device, as the compiler lays them out.

    Attributes:
      arguments: train state and batch.
      outputs: results; those in place of arguments included.
      aliased: outputs that take the place of arguments.
      temporaries: everything between.
      code: the program itself.
      peak: the largest sum of arguments, outputs and temporaries at any time.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    peak: int

    @property
    def needed(self) -> int:
        """What has to fit."""
        return self.peak + self.code


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled program.

    Attributes:
      traced: the program as JAX sees it, before the compiler.
      mesh: the devices.
      parameters: numbers of `trained` and `frozen` parameters.
      memory: of one device.
      text: the optimised program, or None where libtpu cannot print it.
      seconds: time that the compiler took, here.
    """

    traced: Traced
    mesh: jax.sharding.Mesh
    parameters: dict[str, int]
    memory: Memory
    text: str | None
    seconds: float


def compile_for(target: Target, topology: Topology) -> Step:
    """Compiles a program; needs neither its data nor its devices.

    Raises:
      ConfigError: the mesh or the batch does not fit the topology, or it has no compiler here, or
        the compiler fails.
      OutOfMemory: the program does not fit into a device's memory.
    """
    mesh = sharding.make_mesh(target.mesh, topology.devices())
    # Attention looks at the mesh to know what it is compiled for.
    with jax.set_mesh(mesh):
        traced, parameters = target.trace(mesh)
        lowered = traced.lower()
        start = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise _out_of_memory(error) or _gave_up(error, topology) from error
    seconds = time.perf_counter() - start
    return Step(traced, mesh, parameters, _memory(compiled), _text(compiled), seconds)


def _memory(compiled: Compiled) -> Memory:
    stats: Any = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        peak=stats.peak_memory_in_bytes,
    )


def _text(compiled: Compiled) -> str | None:
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:  # libtpu 0.0.52 cannot print all programs for v5p
        return None


def _out_of_memory(error: Exception) -> OutOfMemory | None:
    message = str(error)
    found = re.search(r"total memory required[^(]*\(([\d.]+)([KMGT])\)", message)
    if "RESOURCE_EXHAUSTED" not in message or not found:
        return None
    return OutOfMemory(int(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2]))))


def _gave_up(error: Exception, topology: Topology) -> ConfigError:
    reason = str(error).splitlines()[0][:300]
    return ConfigError(
        f"the compiler for {topology.name} fails on this step: {reason}. "
        "Cure: other sizes or another mesh; it is the compiler's own error."
    )
