"""The train state, and the compiled train step that all tasks share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int, Key

from data_pipelines.errors import ConfigError
from m3djax import params as params_lib
from m3djax.contracts.task import Batch, Task, loss_of
from m3djax.contracts.terms import Loss
from m3djax.mesh import sharding
from m3djax.params import FlatParams

if TYPE_CHECKING:
    import optax

    from m3djax.experiment import Experiment

Metrics = dict[str, Array]


@struct.dataclass
class TrainState:
    """The state of training: parameters, moments and the number of steps.

    Attributes:
      step: number of finished steps.
      trainable: trained parameters by path, float32.
      opt_state: state of the optimizer, such as moments, for `trainable` only.
      frozen: the other parameters, by path.
    """

    step: Int[Array, ""]
    trainable: FlatParams
    opt_state: Any
    frozen: FlatParams

    @property
    def params(self) -> dict[str, Any]:
        """Returns all parameters in the form that `Task` takes."""
        return params_lib.unflatten(self.trainable | self.frozen)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The pure functions of training for one experiment.

    Attributes:
      experiment: the config.
      spec: shape and dtype of each field of a batch, by name.
    """

    experiment: Experiment
    spec: dict[str, jax.ShapeDtypeStruct]

    def init(self, key: Key[Array, ""]) -> TrainState:
        """Returns a fresh state. Call it under jit, so that no host holds the whole state."""
        flat = params_lib.flatten(self.experiment.adapted.init(key, self.spec))
        trainable, frozen = params_lib.split(flat, self.experiment.trainable)
        opt_state = self.optimizer(trainable).init(trainable)
        return TrainState(jnp.zeros((), jnp.int32), trainable, opt_state, frozen)

    def optimizer(self, trainable: FlatParams) -> optax.GradientTransformation:
        """Returns the optimizer for these parameters."""
        e = self.experiment
        return e.optimizer.build(e.steps, trainable, e.groups)

    def step(
        self, state: TrainState, batch: Batch, seed: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        """Returns the state after one update, and the metrics of the step.

        If the loss or a gradient is not finite, parameters and moments stay unchanged.
        """
        import optax  # slow to import; configs import this module

        keys = sample_keys(seed, state.step, self.experiment.data.batch_size)
        total, loss, grads = self._gradients(state, batch, keys)
        updates, opt_state = self.optimizer(state.trainable).update(
            grads, state.opt_state, state.trainable
        )
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = loss.values() | {
            "loss": total / loss.weight,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(trainable),
            "lr": jnp.asarray(self.experiment.optimizer.rate(self.experiment.steps)(state.step)),
        }
        health = _finite(metrics["loss"], grads)
        fine = jnp.all(jnp.stack(list(health.values())))
        new, old = (trainable, opt_state), (state.trainable, state.opt_state)
        trainable, opt_state = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
        metrics |= {f"finite/{part}": value for part, value in health.items()}
        return TrainState(state.step + 1, trainable, opt_state, state.frozen), metrics

    def _inputs(self, batch: Batch, keys: Key[Array, " b"]) -> Batch:
        """Returns the augmented batch in the form that the task takes."""
        e = self.experiment
        if e.task.stochastic:
            keys = jax.vmap(jax.random.split)(keys)[:, 0]
        return e.inputs(batch, keys, e.data.spatial())

    def _gradients(
        self, state: TrainState, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Array, Loss, FlatParams]:
        """Returns `Loss.total`, the loss and the gradients of the batch.

        Total and loss are sums over the parts of the batch. Gradients are summed too and divided by
        the weight at the end.
        """
        e, parts = self.experiment, self.experiment.gradient_accumulation_steps
        weights = e.task.weights(batch) if parts > 1 else {}

        def total(trainable: FlatParams, batch: Batch, keys: Array) -> tuple[Array, Loss]:
            params = params_lib.unflatten(trainable | state.frozen)
            inputs = self._inputs(batch, keys)
            loss = loss_of(e.adapted, params, inputs, keys, train=True)
            if parts > 1:
                _check_parts(e.task, loss, weights)
            return loss.weighed(weights).total, loss

        def part(
            trainable: FlatParams, batch: Batch, keys: Array
        ) -> tuple[Array, Loss, FlatParams]:
            (value, loss), grads = jax.value_and_grad(total, has_aux=True)(trainable, batch, keys)
            return value, loss, grads

        value, loss, grads = _sum_over_parts(
            lambda rows: part(state.trainable, *rows), (batch, keys), parts
        )
        loss = loss.weighed(weights)
        return value, loss, jax.tree.map(lambda g: g / loss.weight, grads)


def compile_step(trainer: Trainer, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """Returns the jitted step. It donates the state and keeps the shardings of the state."""
    state = jax.eval_shape(trainer.init, jax.eval_shape(jax.random.key, 0))
    # Without out_shardings the second call would compile again.
    shardings = (sharding.state_shardings(state, mesh, trainer.experiment.task), None)
    return jax.jit(trainer.step, donate_argnums=0, out_shardings=shardings)


def sample_keys(seed: Key[Array, ""], step: Int[Array, ""] | int, rows: int) -> Key[Array, " b"]:
    """Returns one key per sample, made from (seed, step, row).

    The keys do not depend on the mesh, on the number of processes or on gradient accumulation.
    """
    step_key = jax.random.fold_in(seed, step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(rows))


def _sum_over_parts(function: Callable[[Any], Any], rows: Any, parts: int) -> Any:
    """Returns the sum of `function` over parts of `rows`. The parts are computed in turn."""
    if parts == 1:
        return function(rows)
    # Part i has the rows i, i + parts, ..., so that each device has rows of each part.
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), rows)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, _ = jax.lax.scan(
        lambda sums, part: (jax.tree.map(jnp.add, sums, function(part)), None), zeros, split
    )
    return sums


def _check_parts(task: Task, loss: Loss, weights: Mapping[str, Array]) -> None:
    """Raises ConfigError if the sum over parts of a batch differs from the loss of the batch."""
    missing = sorted(loss.terms.keys() - weights.keys())
    if missing and (weights or not loss.one_weight):
        raise ConfigError(
            f"gradient_accumulation_steps: {type(task).__name__}.weights does not tell the weight "
            f"of {', '.join(missing)}, and the terms of the loss have different weights: they "
            "cannot be computed from a part of the batch. Cure: gradient_accumulation_steps=1, or "
            "a method `weights` of the task that computes the weights of all terms from the batch."
        )


def _finite(loss: Array, grads: FlatParams) -> dict[str, Array]:
    """Returns whether the loss and the gradients are finite: "loss" and one entry per component."""
    health = {"loss": jnp.isfinite(loss)}
    for path, grad in grads.items():
        part = path.split("/")[0]
        health[part] = health.get(part, jnp.asarray(True)) & jnp.all(jnp.isfinite(grad))
    return health
