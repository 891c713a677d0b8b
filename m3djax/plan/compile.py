"""Compilation of real programs for absent devices."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax
from jax.stages import Compiled, Traced

from data_pipelines.errors import ConfigError
from m3djax.mesh import sharding
from m3djax.plan.targets import Target
from m3djax.plan.topology import Topology


class OutOfMemory(Exception):
    """An error for a program that needs more memory than a device has.

    Attributes:
      needed: bytes per device that the program needs.
    """

    def __init__(self, needed: int) -> None:
        self.needed = needed
        super().__init__(f"the step needs {needed / 2**30:.2f} GiB per device")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of one device in bytes, as the compiler assigns it.

    Attributes:
      arguments: train state and batch.
      outputs: all results, including those written over arguments.
      aliased: results that are written over arguments.
      temporaries: intermediate arrays.
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
        """Returns the bytes that must fit: peak and code."""
        return self.peak + self.code


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled program.

    Attributes:
      traced: the traced program, before compilation.
      mesh: the devices.
      parameters: numbers of `trained` and `frozen` parameters.
      memory: memory of one device.
      text: the optimised program; None if libtpu cannot print it.
      seconds: compile time on this machine.
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
      ConfigError: the mesh or the batch does not fit the topology, the compiler for the topology is
        not installed, or the compiler fails.
      OutOfMemory: the program does not fit into a device's memory.
    """
    mesh = sharding.make_mesh(target.mesh, topology.devices())
    # Attention reads the platform from the current mesh.
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
        "Cure: other sizes or another mesh; the error comes from the compiler itself."
    )
