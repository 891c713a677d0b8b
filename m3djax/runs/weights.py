"""Folders of weights without a run, such as imported weights; they are read like runs.

In such a folder, config.json is an experiment that fits the weights, weights/ holds the parameters
of one or several of its components, and origin.json names their source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from data_pipelines.files import write_whole
from m3djax.config import serialize
from m3djax.experiment import Experiment
from m3djax.mesh import distributed, sharding
from m3djax.params import FlatParams
from m3djax.runs import checkpoint, manifest, run_folder
from m3djax.runs.checkpoint import CheckpointError

FOLDER = "weights"
ORIGIN = "origin.json"
ASIDE = "aside"
"""Subfolder of published tensors that belong to no component: unchanged safetensors files."""


def save(
    folder: epath.PathLike,
    experiment: Experiment,
    parameters: Mapping[str, Any],
    origin: Mapping[str, Any],
) -> None:
    """Writes a folder of weights; a folder of an interrupted call is never read as complete.

    Args:
      folder: a new folder, or one with nothing but files of an interrupted call.
      experiment: the task, data and evaluators that evaluation and export read.
      parameters: path -> array, with the paths of the experiment's task.
      origin: the source of the weights; JSON-able.

    Raises:
      CheckpointError: the folder holds something else.
    """
    folder = epath.Path(folder).resolve()
    place = folder / FOLDER
    if folder.exists():
        names = {path.name for path in folder.iterdir()}
        if names - {FOLDER, ORIGIN, ASIDE, run_folder.CONFIG} or (place / manifest.NAME).exists():
            raise CheckpointError(f"{folder}: exists. Cure: another name, or delete it.")
    if place.exists():
        place.rmtree()
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / run_folder.CONFIG, serialize.dumps(experiment))
    write_whole(folder / ORIGIN, json.dumps(dict(origin), indent=1) + "\n")
    ocp.save(place, dict(parameters))
    manifest.write(place, {})


def load_params(
    folder: epath.PathLike,
    wanted: Mapping[str, Any],
    *,
    step: int | None = None,
    fresh_adapters: bool = False,
) -> FlatParams:
    """Reads parameters from a run's checkpoint, or from a folder that `save` wrote.

    Args:
      folder: a run or a folder of weights.
      wanted: path -> jax.ShapeDtypeStruct with a sharding; see `checkpoint.load_params`.
      step: a step from `newest_readable`; None: the newest readable step.
      fresh_adapters: whether to leave out adapters that were not saved.

    Raises:
      CheckpointError: nothing in the folder is readable, it lacks a path, or a shape differs.
    """
    place = epath.Path(folder).resolve() / FOLDER
    if not place.exists():
        return checkpoint.load_params(folder, wanted, step, fresh_adapters=fresh_adapters)
    if step is None:
        distributed.from_first(lambda: newest_readable(folder))
    saved = ocp.metadata(place).metadata
    if fresh_adapters:
        wanted = checkpoint.without_fresh_adapters(wanted, saved)
    return checkpoint.read_arrays(place, wanted, saved)


def on_mesh(
    leaves: Mapping[str, Any], mesh: Mesh, model: Any, dtype: Any = "float32"
) -> dict[str, Any]:
    """Returns `wanted` of `load_params` for parameters that are split by the sharding table.

    Args:
      leaves: path -> anything with a shape.
      mesh: the devices.
      model: the task or modules at the root of the paths; see `sharding.state_shardings`.
      dtype: the dtype of the parameters that are read.
    """
    places = sharding.state_shardings(dict(leaves), mesh, model)
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=places[path])
        for path, leaf in leaves.items()
    }


def newest_readable(folder: epath.PathLike) -> int:
    """Returns the step of a run's newest readable checkpoint; 0 for a folder that `save` wrote.

    Raises:
      CheckpointError: nothing in the folder is readable.
    """
    place = epath.Path(folder) / FOLDER
    if not place.exists():
        return checkpoint.newest_readable(folder)
    if reason := manifest.damage(place):
        raise CheckpointError(f"{place}: {reason}. Cure: convert the weights again.")
    return 0
