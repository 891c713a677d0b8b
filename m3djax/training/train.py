"""The training loop."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from data_pipelines.errors import ConfigError, UserError
from data_pipelines.files import no_space
from m3djax.config import serialize
from m3djax.contracts.evaluator import Evaluator
from m3djax.evaluate.loop import measure, subject_of
from m3djax.experiment import Experiment
from m3djax.mesh import distributed, sharding
from m3djax.params import unflatten
from m3djax.runs import run_folder
from m3djax.runs.checkpoint import Checkpointer
from m3djax.runs.metrics import MetricsWriter, open_writer
from m3djax.runs.model import Model
from m3djax.runs.state import (
    abstract_batch,
    abstract_state,
    initial_state,
    specification,
    trainer_of,
)
from m3djax.step import Metrics, TrainState, compile_step
from m3djax.training.signals import stop_signals
from m3djax.training.throughput import Meter

log = logging.getLogger(__name__)


class NonFiniteError(distributed.Agreed, UserError, FloatingPointError):
    """Error for NaN or infinity in a loss or gradient; the last good parameters are saved."""


class Interrupted(distributed.Agreed, UserError, RuntimeError):
    """Error that ends training after a stop signal; the state is saved.

    Attributes:
      status: exit status of the process. It tells launchers to run the command again
        (EX_TEMPFAIL in sysexits.h).
    """

    status = 75


def train(experiment: Experiment) -> epath.Path:
    """Trains an experiment, or resumes it from its last readable checkpoint.

    Returns:
      The run's folder.

    Raises:
      DataError: the data cannot be read.
      NonFiniteError: the loss or a gradient was not finite.
      Interrupted: any process received SIGTERM or ctrl-C; the state is saved.
      CheckpointError: the run has checkpoints and none is readable.
      RunError: the run's folder belongs to another config, or its disk is full.
    """
    experiment.task.check(experiment.data)
    experiment.data.check()
    for evaluator in experiment.evaluators.values():
        evaluator.check(experiment.data)
        evaluator.check_task(experiment.task)
    mesh = sharding.make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        # Traced before anything is written, so that a config that cannot run leaves no folder.
        like, step = trace(experiment, mesh)
        folder = run_folder.open_for_training(experiment)
        loop = Loop.prepare(experiment, folder, mesh, like, step)
        try:
            loop.run()
        except OSError as error:
            if not no_space(error):
                raise
            raise run_folder.RunError(
                f"{folder}: the disk or quota is full. The checkpoints are unchanged. Cure: make "
                "room, and run the same command: it resumes from the last checkpoint."
            ) from error
        finally:
            loop.checkpointer.close()
    return folder


@dataclasses.dataclass
class Loop:
    """The training loop and its state on the host.

    Attributes:
      experiment: the config.
      folder: the run's folder.
      mesh: the devices.
      checkpointer: saves and restores checkpoints.
      state: the training state, on the devices.
      step: the training step, traced and not yet compiled.
    """

    experiment: Experiment
    folder: epath.Path
    mesh: jax.sharding.Mesh
    checkpointer: Checkpointer
    state: TrainState
    step: jax.stages.Lowered

    @classmethod
    def prepare(
        cls,
        experiment: Experiment,
        folder: epath.Path,
        mesh: jax.sharding.Mesh,
        like: TrainState,
        step: jax.stages.Lowered,
    ) -> Loop:
        """Restores the newest checkpoint, or makes an initial state with parts of other runs.

        Args:
          experiment: the config.
          folder: the run's folder.
          mesh: the devices.
          like: shapes, dtypes and shardings of the state.
          step: the traced training step.
        """
        checkpointer = Checkpointer(folder, keep=experiment.keep)
        state = checkpointer.restore(like)
        if state is None:
            state = initial_state(experiment, mesh, like)
        else:
            log.info("%s: resumes at step %d", folder, int(state.step))
        return cls(experiment, folder, mesh, checkpointer, state, step)

    def run(self) -> None:
        """Trains to the last step; raises the errors of `train`."""
        e = self.experiment
        if int(self.state.step) >= e.steps:
            return
        seed = jax.random.key(e.seed)
        step_fn = self.step.compile()
        # A collective may time out before a slower host has compiled: Gloo does after 30 s.
        distributed.barrier()
        start = int(self.state.step)
        meter = Meter(e.adapted, specification(e), self.mesh, e.trainable, e.data.spatial())
        rows = sharding.process_rows(self.mesh, e.data.batch_size)
        batches = e.data.batches(e.seed, start, rows)
        pending: Metrics | None = None
        with open_writer(self.folder, start, e.steps) as writer, stop_signals() as stop:
            try:
                for step in range(start, e.steps):
                    self._profile(step)
                    with meter.waiting():
                        batch = next(batches)
                    self.state, metrics = step_fn(self.state, to_devices(batch, self.mesh), seed)
                    # The call returns at once. While the devices work, report the previous step.
                    if pending is not None:
                        self._report(writer, meter, step - 1, pending)
                    pending = metrics
                    asked = stop(step)  # once: a signal may come while this step is saved
                    self.checkpointer.check()
                    if self._due(step + 1) or asked:
                        self._report(writer, meter, step, pending)
                        pending = None
                        self._save()
                        self._evaluate(writer, step + 1)
                    if asked and step + 1 < e.steps:
                        raise Interrupted(
                            f"{asked} came: saved at step {step + 1} of {e.steps}. "
                            "The same command resumes from there."
                        )
                self._profile(e.steps)
            finally:
                batches.close()

    def _report(self, writer: MetricsWriter, meter: Meter, step: int, metrics: Metrics) -> None:
        """Waits for the step's metrics, raises at NaN, and writes a line every `log_every`."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        parts = [
            n.removeprefix("finite/")
            for n, v in values.items()
            if n.startswith("finite/") and not v
        ]
        if parts:
            self._save()
            raise NonFiniteError(
                f"step {step}: not finite: {', '.join(parts)}. Such an update is never applied; "
                "the last good parameters are saved. Cure: lower the learning rate, lengthen the "
                "warm-up, or check the data of this step."
            )
        writer.advance(step + 1)
        last = step + 1 == self.experiment.steps
        if step % self.experiment.log_every == 0 or last:
            numbers = {n: v for n, v in values.items() if not n.startswith("finite/")}
            writer.write(step, numbers | meter.read(step))

    def _due(self, done: int) -> bool:
        """Returns whether to save after `done` steps."""
        e = self.experiment
        evaluators = any(v.every and done % v.every == 0 for v in e.evaluators.values())
        return done == e.steps or done % e.save_every == 0 or evaluators

    def _save(self) -> None:
        self.checkpointer.save(self.state, serialize.dumps(self.experiment))

    def _evaluate(self, writer: MetricsWriter, done: int) -> None:
        due = {
            n: v for n, v in self.experiment.evaluators.items() if v.every and not done % v.every
        }
        if due:
            for numbers in self._measure(due):
                writer.write(done - 1, numbers)

    def _measure(self, evaluators: Mapping[str, Evaluator]) -> list[dict[str, float]]:
        """Returns the scores of each evaluator under "NAME/SCORE"; all processes take part."""
        flat = self.state.trainable | self.state.frozen
        flat, mesh = sharding.for_one_process(flat, self.mesh, self.experiment.task)
        model = Model(self.experiment, self.experiment.merged(unflatten(flat)))
        results = []
        for name, evaluator in evaluators.items():
            found = measure(evaluator, subject_of(model, mesh, self.folder, name))
            results.append({f"{name}/{k}": v for k, v in found.items() if isinstance(v, float)})
        return results

    def _profile(self, step: int) -> None:
        first, last = self.experiment.profile
        if last > first and step == first:
            jax.profiler.start_trace(str(self.folder / "profile"))
        if last > first and step == last:
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()


def trace(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple[TrainState, jax.stages.Lowered]:
    """Traces the initial state and the training step; nothing is computed and no data is read.

    Args:
      experiment: the config.
      mesh: the devices.

    Returns:
      Shapes, dtypes and shardings of the state, and the step.

    Raises:
      ConfigError: the batch cannot be split over the mesh, or the task reads a field that the
        batch does not have.
    """
    sharding.process_rows(mesh, experiment.data.batch_size)
    batch, seed = abstract_batch(experiment, mesh), jax.random.key(experiment.seed)
    try:
        like = abstract_state(experiment, mesh)
        return like, compile_step(trainer_of(experiment), mesh).lower(like, batch, seed)
    except KeyError as error:
        (field,) = error.args[:1] or ("",)
        if not isinstance(field, str) or field in batch:
            raise
        raise ConfigError(
            f"{type(experiment.task).__name__} reads {field!r}, and a batch has "
            f"{', '.join(sorted(batch))}. Cure: add a field that makes {field!r} to data.fields."
        ) from error


def to_devices(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch on its devices, as its shards of the global batch."""
    where = sharding.batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(where, value) for name, value in batch.items()
    }
