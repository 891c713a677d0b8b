"""A user's evaluator, in a package outside of m3djax."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m3djax.contracts.evaluator import Batch, Predictions, Subject
from m3djax.contracts.scores import Column, Scores
from m3djax.contracts.task import apply
from m3djax.evaluate import SplitEvaluator
from m3djax.evaluate.loop import place


@functools.partial(jax.jit, static_argnums=0)
def brightness(vision: Any, params: Any, image: jax.Array) -> jax.Array:
    """The mean of the squared tokens of each volume."""
    tokens = apply(vision, params, image.astype(jnp.float32) / 1000).tokens
    return jnp.mean(jnp.square(tokens) * jnp.arange(tokens.shape[-1]), (1, 2))


@dataclasses.dataclass(frozen=True)
class Brightness(SplitEvaluator):
    """A number of every crop that depends on the encoder, and the process that computed it."""

    def predict(self, subject: Subject, batch: Batch) -> Mapping[str, Any]:
        """See `Evaluator.predict`."""
        (image,) = place(subject.mesh, batch, ["image"]).values()
        found = brightness(subject.task.vision, subject.params["vision"], image)
        return {"brightness": found, "process": np.full(len(found), jax.process_index())}

    def score(self, subject: Subject, predictions: Mapping[str, Predictions]) -> Scores:
        """See `Evaluator.score`."""
        found = predictions[self.split]
        units, sample = self.units(subject, found)
        names = ("brightness", "process")
        return Scores(tuple(Column.of("", n, units, sample, found[n]) for n in names))
