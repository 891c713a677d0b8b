"""Memory that an import of weights needs, computed from the headers of the files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import AbstractMesh

from m3djax.convert.safetensors_files import LazyTensor
from m3djax.mesh import sharding
from m3djax.runs.sharding_table import axes_of

_GIB = 2**30
_BYTES = 4  # imported parameters are float32


def plan(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    expected: Mapping[str, tuple[int, ...]],
    mesh: tuple[int, int, int],
    model: Any,
) -> str:
    """Returns a text with the bytes on host and devices; the mesh need not exist.

    Parameters are read one after the other, with all layers together, and each for one device after
    the other. The host holds nothing else.

    Args:
      path: the file, or the index of its shards.
      tensors: its tensors by name.
      expected: our paths and shapes.
      mesh: devices along (data, fsdp, tensor); -1 stands for all other devices of this machine.
      model: the root of our paths; see `sharding.state_shardings`.
    """
    if -1 in mesh:
        places = sharding.make_mesh(mesh).abstract_mesh
    else:
        places = AbstractMesh(mesh, sharding.AXES)
    parts = {path: _share(path, shape, places, model) for path, shape in expected.items()}
    numbers = sum(math.prod(shape) for shape in expected.values())
    largest = max(parts, key=lambda name: parts[name])
    kinds = Counter(tensor.dtype for tensor in tensors.values())
    sizes = ", ".join(f"{name} {size}" for name, size in places.shape.items())
    return "\n".join(
        [
            f"{path}: {len(tensors)} tensors ({', '.join(f'{n} {k}' for k, n in kinds.items())})",
            f"model: {len(expected)} parameters, {numbers:,} numbers, "
            f"{numbers * _BYTES / _GIB:.2f} GiB in float32",
            f"mesh: {sizes}",
            f"device: {sum(parts.values()) * _BYTES:,} bytes "
            f"({sum(parts.values()) * _BYTES / _GIB:.2f} GiB) on each",
            f"host: {parts[largest] * _BYTES:,} bytes ({parts[largest] * _BYTES / _GIB:.2f} GiB) "
            f"for each of its devices at most, while {largest} is read",
            "nothing was loaded",
        ]
    )


def _share(path: str, shape: tuple[int, ...], mesh: AbstractMesh, model: Any) -> int:
    """Returns how many numbers of a parameter lie on one device."""
    spec = sharding.parameter_spec(path, shape, mesh, model)
    axes = [axis for entry in spec for axis in axes_of(entry)]
    return math.prod(shape) // math.prod(mesh.shape[axis] for axis in axes)
