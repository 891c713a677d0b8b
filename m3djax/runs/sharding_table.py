"""The sharding of every parameter of an experiment, as a text table."""

from __future__ import annotations

import math

import jax
from jax.sharding import AbstractMesh

from m3djax.experiment import Experiment
from m3djax.mesh import sharding
from m3djax.runs.state import trainer_of


def sharding_table(experiment: Experiment) -> str:
    """Returns a line per parameter: path, shape, mesh axes of each dimension, MiB per device.

    A mesh with all sizes given needs no devices, so the table of a pod can be made anywhere.
    Optimizer moments are split like their parameter. MiB are float32, without moments.

    Raises:
      ConfigError: a parameter has no row in the sharding table, or the mesh has a size of -1 and
        does not fit the devices of this machine.
    """
    if -1 in experiment.mesh:
        mesh = sharding.make_mesh(experiment.mesh).abstract_mesh
    else:
        mesh = AbstractMesh(experiment.mesh, sharding.AXES)
    state = jax.eval_shape(trainer_of(experiment).init, jax.eval_shape(jax.random.key, 0))
    rows, total = [("parameter", "shape", "split over", "MiB per device")], 0.0
    for path, leaf in sorted((state.trainable | state.frozen).items()):
        spec = sharding.parameter_spec(path, leaf.shape, mesh, experiment.task)
        parts = math.prod(mesh.shape[axis] for entry in spec for axis in axes_of(entry))
        mib = leaf.size / parts * 4 / 2**20
        total += mib
        split = ", ".join("+".join(axes_of(entry)) or "-" for entry in spec)
        shape = " x ".join(map(str, leaf.shape)) or "scalar"
        frozen = "" if path in state.trainable else "  frozen"
        rows.append((path, shape, split, f"{mib:.3f}{frozen}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=True)) for row in rows
    ]
    sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return "\n".join([f"mesh: {sizes}", *lines, f"total: {total:.1f} MiB per device"])


def axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the mesh axes that split one dimension of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else entry or ()
