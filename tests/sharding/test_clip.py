"""Contrastive training on 1 device and on meshes of 8 is the same."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from m3djax.experiment import Experiment
from m3djax.losses.contrastive import SigmoidPairs
from m3djax.mesh import sharding
from m3djax.models.embedding_head import AttentionPool, EmbeddingHead
from m3djax.runs.state import trainer_of
from tests import tiny


def experiment(objective: Any) -> Experiment:
    heads = {
        "vision_head": EmbeddingHead(12, "attention", AttentionPool(2)),
        "text_head": EmbeddingHead(12, "mean"),
    }
    return tiny.experiment(task=tiny.clip(objective=objective, **heads))


def test_five_updates_equal_those_of_one_device() -> None:
    """The ring inside of the whole step; InfoNCE on meshes is compared in test_contrastive."""
    config, shape = experiment(SigmoidPairs()), (2, 2, 2)
    start = jax.device_get(jax.jit(trainer_of(config).init)(jax.random.key(0)))
    one = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    alone, theirs = tiny.updates(config, one, tiny.text_batch, start=start)
    mesh = sharding.make_mesh(shape)
    state, ours = tiny.updates(config, mesh, tiny.text_batch, start=start)
    for here, there in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(here["loss"], there["loss"], rtol=2e-5)
        np.testing.assert_allclose(here["grad_norm"], there["grad_norm"], rtol=1e-4)
    assert tiny.largest_difference(state.trainable, alone.trainable) < 2e-3
