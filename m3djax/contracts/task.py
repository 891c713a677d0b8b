"""The base class of training tasks: a pure loss over a dict of named components."""

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
    """Returns the output of a component. The terms that it sows are added to the step's loss."""
    return sown.apply(module, {"params": params}, *args, **kwargs)


class Task(abc.ABC):
    """Base class of training tasks. Subclasses are frozen dataclasses of modules and numbers.

    A field that holds a Linen module is a component. Its parameters are `params[field name]`, so
    that a later stage can load a component of an earlier run by its name.
    """

    @property
    def no_accumulation(self) -> str | None:
        """Returns the reason against gradient accumulation; None if accumulation is possible.

        Accumulation needs terms whose sum over the batch is the sum over its parts. Losses that
        compare samples with each other have no such terms.
        """
        return None

    @property
    def stochastic(self) -> bool:
        """Returns whether the loss draws random numbers.

        If so, the augmentation takes the first halves of the keys, `jax.random.split(key)[0]`.
        """
        return True

    def check(self, data: Any) -> None:
        """Raises ConfigError if batches of `data` do not fit the task. Compiles nothing."""
        del data

    @abc.abstractmethod
    def init(self, rng: Key[Array, ""], batch: Batch) -> Params:
        """Returns fresh parameters, one entry per component. Uses only the shapes of `batch`."""

    @abc.abstractmethod
    def loss(self, params: Params, batch: Batch, keys: Key[Array, " b"], *, train: bool) -> Loss:
        """Returns the loss of a batch.

        Args:
          params: one entry per component.
          batch: arrays with the samples along the first axis, as `Inputs` returns them: images are
            float32 in network units, and augmented in training.
          keys: one key per sample, the only source of randomness.
          train: whether to apply dropout.
        """

    def weights(self, batch: Batch) -> Mapping[str, Float[Array, ""]]:
        """Returns the weight of each term of `loss`, by name, computed from the batch alone.

        Two kinds of tasks implement this: tasks whose terms have different weights, and tasks with
        a weight that is not the sum of the weights of the parts, such as a weight of at least 1.
        Gradient accumulation (`Experiment.gradient_accumulation_steps`) then divides each part of a
        batch by the weights of the whole batch. Other tasks return an empty dict.

        Args:
          batch: the whole batch as stored, before `Inputs`.
        """
        del batch
        return {}

    def token_problems(self, tokenizer: Any) -> list[str]:
        """Returns the contradictions between the config and a tokenizer, one line each."""
        del tokenizer
        return []

    def components(self) -> dict[str, nn.Module]:
        """Returns the modules of the task by field name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in fields.items() if isinstance(value, nn.Module)}

    def with_dtype(self, dtype: str) -> Self:
        """Returns the task with `dtype` set in all components that have this field."""
        new = {n: m.clone(dtype=dtype) for n, m in self.components().items() if hasattr(m, "dtype")}
        return dataclasses.replace(self, **new)  # type: ignore[type-var]


def loss_of(
    task: Any, params: Params, batch: Batch, keys: Key[Array, " b"], *, train: bool
) -> Loss:
    """Returns the loss of a task, adapted or not, with the terms that its modules sow.

    Args:
      task: a `Task`, or a task with adapters.
      params: see `Task.loss`, as for the other arguments.
      batch: the batch.
      keys: one key per sample.
      train: whether to apply dropout.

    Raises:
      ValueError: a module sows a term under the name of a term of the task.
    """
    with sown.collecting() as collected:
        loss = task.loss(params, batch, keys, train=train)
    return loss.plus(sown.merged(collected))
