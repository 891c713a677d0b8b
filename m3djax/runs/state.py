"""The train state of an experiment: its shapes, its shardings and its initial value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, Key

from data_pipelines.errors import ConfigError
from m3djax import params
from m3djax.experiment import Experiment
from m3djax.mesh import sharding
from m3djax.params import FlatParams
from m3djax.runs.weights import load_params
from m3djax.step import Trainer, TrainState


def specification(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of a batch."""
    spec = experiment.data.spec()
    return {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in spec.items()}


def abstract_batch(
    experiment: Experiment, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and shardings of a batch; no data is read."""
    where = sharding.batch_sharding(mesh)
    spec = specification(experiment)
    return {n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where) for n, s in spec.items()}


def trainer_of(experiment: Experiment) -> Trainer:
    """Returns the pure functions of an experiment: `init` and the training step."""
    return Trainer(experiment, specification(experiment))


def abstract_params(
    experiment: Experiment, components: Sequence[str] = ()
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns paths, shapes and dtypes of parameters, adapters included; nothing is computed.

    Args:
      experiment: the config.
      components: which components; (): all.
    """
    init, spec = experiment.adapted.init, specification(experiment)
    flat: Any = params.flatten(jax.eval_shape(init, jax.eval_shape(jax.random.key, 0), spec))
    return {
        path: leaf
        for path, leaf in flat.items()
        if not components or path.split("/")[0] in components
    }


def abstract_state(experiment: Experiment, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns shapes, dtypes and shardings of the train state; nothing is computed."""
    state = jax.eval_shape(trainer_of(experiment).init, jax.eval_shape(jax.random.key, 0))
    shardings = sharding.state_shardings(state, mesh, experiment.task)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        shardings,
    )


def initial_state(
    experiment: Experiment, mesh: jax.sharding.Mesh, like: TrainState | None = None
) -> TrainState:
    """Returns the initial state: components of `init_from` from other runs, the rest initialised.

    Parameters loaded from a checkpoint are not initialised first. So a device holds no more than
    the state, and computes no random numbers for a pretrained model.

    Args:
      experiment: the config.
      mesh: the devices.
      like: result of `abstract_state`, if it was made already.

    Raises:
      ConfigError: the task has no component with a name in `init_from`.
      CheckpointError: a source is not readable, or its shapes differ.
    """
    like = like or abstract_state(experiment, mesh)
    given = _given(experiment, like.trainable | like.frozen)

    def rest(key: Key[Array, ""]) -> TrainState:
        state = trainer_of(experiment).init(key)
        trainable, frozen = (
            {path: leaf for path, leaf in leaves.items() if path not in given}
            for leaves in (state.trainable, state.frozen)
        )
        return dataclasses.replace(state, trainable=trainable, frozen=frozen)

    state = sharding.sharded(mesh, experiment.task, rest, jax.random.key(experiment.seed))
    leaves = state.trainable | state.frozen | given
    return dataclasses.replace(
        state,
        trainable={path: leaves[path] for path in like.trainable},
        frozen={path: leaves[path] for path in like.frozen},
    )


def _given(experiment: Experiment, like: Mapping[str, Any]) -> FlatParams:
    """Reads the parameters of `init_from`, with the shapes and shardings of `like`."""
    given: FlatParams = {}
    for component, source in experiment.init_from.items():
        wanted = params.component(like, component)
        if not wanted:
            raise ConfigError(f"init_from: the task has no component {component!r}.")
        given |= load_params(source, wanted, fresh_adapters=True)
    return given
