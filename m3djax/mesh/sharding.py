"""The mesh, the table from logical axes to mesh axes, and the sharding of arrays.

Modules register the logical axes of their parameters with `parameter_axes.register_axes`.
`MESH_AXES` gives the mesh axes that split a dimension with a logical axis.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipelines.errors import ConfigError
from m3djax.mesh.parameter_axes import MESH_AXES, LogicalAxes, parameter_axes

log = logging.getLogger(__name__)

AXES = ("data", "fsdp", "tensor")


def make_mesh(shape: tuple[int, int, int], devices: list[jax.Device] | None = None) -> Mesh:
    """Makes a mesh over (data, fsdp, tensor); one size may be -1 and takes the remaining devices.

    If the devices are in several slices (TPU pods on a slower network), the data axis is split
    over the slices first. So fsdp and tensor stay within a slice.

    Raises:
      ConfigError: the product of the sizes is not the number of devices, or the number of slices
        does not divide the data axis.
    """
    devices = list(devices or jax.devices())
    known = int(np.prod([size for size in shape if size != -1]))
    sizes = tuple(len(devices) // max(known, 1) if size == -1 else size for size in shape)
    if shape.count(-1) > 1 or min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise ConfigError(
            f"mesh={shape} does not fit {len(devices)} devices. Cure: let the sizes of {AXES} "
            "multiply to that number, with at most one -1."
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    if sizes[0] % slices:
        raise ConfigError(
            f"mesh={shape}: the data axis of {sizes[0]} cannot be split over {slices} slices. "
            "Cure: a data axis that is a multiple of the slices."
        )
    inside = (sizes[0] // slices, *sizes[1:])
    grid = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def constrain(x: jax.Array, axes: LogicalAxes) -> jax.Array:
    """Splits an activation over the current mesh; without a mesh, returns it as it is."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(x.shape, axes))


def activation_spec(shape: tuple[int, ...], axes: LogicalAxes) -> P:
    """Returns the partition of an activation on the current mesh."""
    return _spec(shape, axes, jax.sharding.get_abstract_mesh().shape, "activation")


def gather(owner: nn.Module, path: str, kernel: jax.Array) -> jax.Array:
    """Gathers a parameter over fsdp at the place of its use; it stays split over tensor.

    Otherwise the partitioner splits the product and exchanges partial results: thousands of
    permutes for a ViT. Under `remat` the gathered copy is not kept for the backward pass. Without
    a mesh, or with an fsdp axis of size 1, the parameter is returned as it is.

    Args:
      owner: the module at the root of the path; see `parameter_axes`.
      path: the parameter's path below the module.
      kernel: the parameter; inside a scan, its slice for one layer.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return kernel
    axes = parameter_axes(owner, path, kernel.ndim)
    whole = _spec(kernel.shape, axes, {**mesh.shape, "fsdp": 1}, path)
    return jax.lax.with_sharding_constraint(kernel, whole)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: only its rows are split, over data and fsdp."""
    return NamedSharding(mesh, P(MESH_AXES["batch"]))


def process_rows(mesh: Mesh, rows: int) -> tuple[int, ...]:
    """Returns the rows of a batch that this process makes, in rising order.

    They may have gaps: on a torus of TPUs a host's chips need not be consecutive in the mesh.
    Processes whose devices hold the same rows (tensor parallelism across hosts) make the same
    rows.

    Raises:
      ConfigError: the rows cannot be split over the mesh.
    """
    return rows_by_process(mesh, rows)[jax.process_index()]


def rows_by_process(mesh: Mesh, rows: int) -> dict[int, tuple[int, ...]]:
    """Returns the rows of each process, see `process_rows`; also for meshes of absent devices."""
    split = int(np.prod([mesh.shape[axis] for axis in MESH_AXES["batch"]]))
    if rows % split:
        raise ConfigError(f"batch_size={rows} cannot be split over data x fsdp = {split} devices.")
    held: dict[int, set[int]] = {}
    device: Any
    for device, index in batch_sharding(mesh).devices_indices_map((rows,)).items():
        held.setdefault(device.process_index, set()).update(range(*index[0].indices(rows)))
    return {process: tuple(sorted(part)) for process, part in held.items()}


def state_shardings(state: Any, mesh: Mesh, model: Any) -> Any:
    """Returns the shardings of a train state; moments are split like their parameter.

    Args:
      state: tree of arrays or shapes; parameters, moments and frozen leaves are dicts keyed by the
        parameter's full path. Other leaves (counters) are replicated.
      mesh: the devices.
      model: the root of the paths: a task, or a dict of modules by component.

    Raises:
      ConfigError: a parameter has no row or more than one; see `parameter_axes`.
    """

    def place(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = getattr(key_path[-1], "key", None) if key_path else None
        spec = parameter_spec(path, leaf.shape, mesh, model) if isinstance(path, str) else P()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, state)


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, model: Any) -> P:
    """Returns the partition of one parameter; see `state_shardings` for arguments and errors."""
    return _spec(shape, parameter_axes(model, path, len(shape)), mesh.shape, path)


def sharded(mesh: Mesh, model: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Runs `function` under jit; the rows of `model` give the shardings of its results."""
    with jax.set_mesh(mesh):
        shardings = state_shardings(jax.eval_shape(function, *args), mesh, model)
        return jax.jit(function, out_shardings=shardings)(*args)


def for_one_process(
    flat: Mapping[str, jax.Array], mesh: Mesh, model: Any
) -> tuple[dict[str, Any], Mesh]:
    """Returns parameters with which a process can compute alone, and their mesh.

    With one process these are the given ones. With several, each process gets all parameters on
    its own devices. They are split over these if the given mesh splits parameters, and otherwise
    replicated. All processes must call this.

    Args:
      flat: path -> parameter, on `mesh`.
      mesh: all devices.
      model: the root of the paths; see `state_shardings`.
    """
    if jax.process_count() == 1:
        return dict(flat), mesh
    split = mesh.shape["fsdp"] * mesh.shape["tensor"] > 1
    own = make_mesh((1, -1, 1) if split else (-1, 1, 1), jax.local_devices())
    places = state_shardings(dict(flat), own, model)
    found = {}
    for path, leaf in flat.items():
        whole = _whole(mesh)(leaf).addressable_data(0)
        # One by one: a device holds no more than one parameter whole, and no two collectives run
        # at a time.
        found[path] = jax.block_until_ready(jax.device_put(whole, places[path]))
    return found, own


@functools.lru_cache
def _whole(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that replicates an array on every device; compiled once per shape."""
    return jax.jit(lambda leaf: leaf, out_shardings=NamedSharding(mesh, P()))


def _spec(shape: tuple[int, ...], axes: LogicalAxes, sizes: Mapping[str, int], what: str) -> P:
    entries: list[tuple[str, ...] | None] = []
    for dim, axis in zip(shape, axes, strict=True):
        over = tuple(a for a in MESH_AXES[axis] if sizes[a] > 1) if axis else ()
        if dim % int(np.prod([sizes[a] for a in over], dtype=int)):
            log.info(
                "%s: dimension %d (%s) is not divisible over %s: kept whole", what, dim, axis, over
            )
            over = ()
        entries.append(over or None)
    return P(*entries)
