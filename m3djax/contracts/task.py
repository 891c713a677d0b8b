"""What a training task is: a pure loss over a dict of named components."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from flax import linen as nn
from jaxtyping import Array, Float, Key

from m3djax.contracts import sown
from m3djax.contracts.terms import Loss
from m3djax.params import Params

Batch = Mapping[str, Any]


def apply(module: nn.Module, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Returns the output of a component; the terms that it sows reach the loss of the step."""
    return sown.apply(module, {"params": params}, *args, **kwargs)


class Task(abc.ABC):
    """Frozen dataclasses of Linen modules and numbers implement this.

    A field that holds a module is a component: its parameters are `params[field name]`, so that the
    next stage takes a component from an earlier run by its name alone.
    """

    @property
    def no_accumulation(self) -> str | None:
        """Returns why a batch cannot be computed in parts; None if it can.

        It can where the sum of every term over the batch is the sum over its parts: not where
        samples are compared with each other.
        """
        return None

    @property
    def stochastic(self) -> bool:
        """Returns whether the loss draws random numbers.

        The augmentation then takes the first halves of the keys, `jax.random.split(key)[0]`.
        """
        return True

    def check(self, data: Any) -> None:
        """Raises ConfigError if batches of `data` lack what the task needs; compiles nothing."""
        del data

    @abc.abstractmethod
    def init(self, rng: Key[Array, ""], batch: Batch) -> Params:
        """Fresh parameters, one entry per component; only the shapes of `batch` matter."""

    @abc.abstractmethod
    def loss(self, params: Params, batch: Batch, keys: Key[Array, " b"], *, train: bool) -> Loss:
        """The loss of a batch.

        Args:
          params: one entry per component.
          batch: arrays with the samples along the first axis, as `Inputs` returns them: images are
            float32 in network units, and augmented in training.
          keys: one per sample, all randomness comes from them.
          train: whether to drop out.
        """

    def weights(self, batch: Batch) -> Mapping[str, Float[Array, ""]]:
        """Returns the weight of every term of `loss`, by name, from the batch alone.

        A task whose terms have different weights returns them here, so that a batch can be computed
        in parts (`Experiment.gradient_accumulation_steps`): every part then divides by the weights
        of the whole batch.
        A task whose terms share one weight needs none.

        Args:
          batch: the whole batch as stored, before `Inputs`.
        """
        del batch
        return {}

    def token_problems(self, tokenizer: Any) -> list[str]:
        """Returns what of the config contradicts a language model's tokenizer, a line each."""
        del tokenizer
        return []

    def components(self) -> dict[str, nn.Module]:
        """Returns the modules of the task by the name of their field."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in fields.items() if isinstance(value, nn.Module)}

    def with_dtype(self, dtype: str) -> Self:
        """Returns the task with all components that have a `dtype` computing in this one."""
        new = {n: m.clone(dtype=dtype) for n, m in self.components().items() if hasattr(m, "dtype")}
        return dataclasses.replace(self, **new)  # type: ignore[type-var]


def loss_of(
    task: Any, params: Params, batch: Batch, keys: Key[Array, " b"], *, train: bool
) -> Loss:
    """Returns the loss of a task, adapted or not, with the terms that its modules sow.

    Raises:
      ValueError: a module sows a term under the name of one of the task's.
    """
    with sown.collecting() as collected:
        loss = task.loss(params, batch, keys, train=train)
    return loss.plus(sown.merged(collected))
