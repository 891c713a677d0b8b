"""The model of a run: a task with its parameters, read from the run's folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from data_pipelines.errors import ConfigError
from data_pipelines.pipeline import Data
from m3djax import params as params_lib
from m3djax.contracts.task import Task, apply
from m3djax.experiment import Experiment
from m3djax.inputs.inputs import FieldInputs, ScaleIntensityRange
from m3djax.mesh import sharding
from m3djax.models.encoder import Encoder, VisionFeatures
from m3djax.params import Dtype, Params
from m3djax.runs import run_folder, state, weights


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A task with its parameters, ready to predict: adapters are merged.

    Attributes:
      experiment: the config of the run.
      params: one entry per component of the task.
    """

    experiment: Experiment
    params: Params

    @property
    def task(self) -> Task:
        """Returns the task that the parameters are for."""
        return self.experiment.task

    @property
    def data(self) -> Data:
        """Returns the data config of the run; its sizes and tokenizer hold for the model too."""
        return self.experiment.data

    @property
    def inputs(self) -> FieldInputs:
        """Returns the transform of stored batches into batches of the task."""
        return self.experiment.inputs.bound(self.data.spatial())

    def encode(self, images: Float[ArrayLike, "b d h w 1"]) -> VisionFeatures:
        """Returns features of volumes; compiled once per shape.

        Args:
          images: (B, D, H, W, 1) in the units of the run's data, such as HU. The encoder's stride
            divides D, H and W.

        Raises:
          ConfigError: the task has no encoder `vision`, or the stride does not divide the volume.
        """
        vision = self.task.components().get("vision")
        if not isinstance(vision, Encoder):
            raise ConfigError(
                f"{type(self.task).__name__} has no encoder `vision`. Cure: a run that has one."
            )
        window = self.experiment.inputs.window
        return _encode(vision, window, self.params["vision"], jnp.asarray(images, jnp.float32))

    @classmethod
    def open(
        cls,
        run: epath.PathLike,
        mesh: Mesh | None = None,
        dtype: Dtype | None = None,
        *,
        step: int | None = None,
        components: Sequence[str] = (),
    ) -> Self:
        """Reads the model of a run, or of a folder that `convert` wrote.

        Args:
          run: the folder.
          mesh: the devices for the parameters, which the sharding rows split; None: the first
            device of this process.
          dtype: dtype of the parameters and of the computation; None: float32 parameters, and the
            computation as in training.
          step: a readable checkpoint; None: the newest.
          components: which components are read; (): all.

        Raises:
          RunError: the folder is not a run.
          CheckpointError: nothing in it is readable, or a component is missing.
        """
        experiment = run_folder.read_experiment(run)
        flat = read_params(run, experiment, mesh, dtype, step=step, components=components)
        if dtype is not None:
            task = experiment.task.with_dtype(dtype)
            experiment = dataclasses.replace(experiment, task=task)
        return cls(experiment, experiment.merged(params_lib.unflatten(flat)))

    @classmethod
    def untrained(cls, run: epath.PathLike, mesh: Mesh) -> Self:
        """Makes the model of a run as it was before its first step.

        Raises:
          RunError: the folder is not a run.
          CheckpointError: a source of `init_from` is not readable.
        """
        experiment = run_folder.read_experiment(run)
        return cls(experiment, experiment.merged(state.initial_state(experiment, mesh).params))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    vision: Encoder, window: ScaleIntensityRange, params: Params, images: Float[Array, "b d h w 1"]
) -> VisionFeatures:
    return apply(vision, params, window(images))


def read_params(
    run: epath.PathLike,
    experiment: Experiment,
    mesh: Mesh | None = None,
    dtype: Dtype | None = None,
    *,
    step: int | None = None,
    components: Sequence[str] = (),
) -> params_lib.FlatParams:
    """Reads the parameters of a run, with adapters not merged; see `Model.open`."""
    if mesh is None:
        mesh = sharding.make_mesh((1, 1, 1), jax.local_devices()[:1])
    shapes = state.abstract_params(experiment, components)
    wanted = weights.on_mesh(shapes, mesh, experiment.task, dtype or "float32")
    return weights.load_params(run, wanted, step=step)
