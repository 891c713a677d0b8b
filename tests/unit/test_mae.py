from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3djax.step import sample_keys
from tests import tiny

KEYS = sample_keys(jax.random.key(0), 0, 8)
TASK = tiny.mae()


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.jit(TASK.init)(jax.random.key(1), tiny.batch())


def test_the_loss_is_the_mean_error_of_hidden_patches(params: dict) -> None:
    loss = jax.jit(lambda p: TASK.loss(p, tiny.network(tiny.batch()), KEYS, train=False))(params)
    noise = TASK.noise(jax.vmap(jax.random.split)(KEYS)[:, 1], (8, 8, 16, 16, 1))
    images = tiny.network(tiny.batch())["image"]
    result = jax.jit(TASK.reconstruct)(params, images, noise)
    hidden = np.asarray(result.hidden, bool)
    assert (hidden.sum(axis=1) == 24).all()  # three quarters of 32
    errors = np.square(np.asarray(result.prediction) - np.asarray(result.target)).mean(-1)
    np.testing.assert_allclose(loss.total / loss.weight, errors[hidden].mean(), rtol=1e-5)
    assert loss.weight == 8 * 24


def test_masks_differ_between_samples_and_steps() -> None:
    one, two = (
        TASK.noise(sample_keys(jax.random.key(0), step, 8), (8, 8, 16, 16, 1)) for step in (0, 1)
    )
    assert len(np.unique(np.concatenate([one, two]), axis=0)) == 16


def test_a_samples_randomness_does_not_depend_on_the_batch() -> None:
    few = sample_keys(jax.random.key(0), 3, 2)
    many = sample_keys(jax.random.key(0), 3, 8)
    np.testing.assert_array_equal(jax.random.key_data(few), jax.random.key_data(many)[:2])


def test_hidden_voxels_do_not_reach_the_prediction(params: dict) -> None:
    images = tiny.network(tiny.batch())["image"]
    noise = TASK.noise(KEYS, images.shape)
    result = jax.jit(TASK.reconstruct)(params, images, noise)
    grid = np.asarray(result.hidden).reshape(8, 2, 4, 4, 1)
    voxels = grid.repeat(4, 1).repeat(4, 2).repeat(4, 3)
    changed = jax.jit(TASK.reconstruct)(params, jnp.where(voxels == 1, 7.0, images), noise)
    np.testing.assert_array_equal(changed.prediction, result.prediction)


def test_ratios_that_cannot_work_are_explained(params: dict) -> None:
    with pytest.raises(ValueError, match="mask_ratio=1.0 must lie between"):
        tiny.mae(mask_ratio=1.0)
    greedy = dataclasses.replace(TASK, mask_ratio=0.99)
    with pytest.raises(ValueError, match="leaves none of 32 patches visible"):
        batch = tiny.network(tiny.batch())
        jax.eval_shape(lambda p: greedy.loss(p, batch, KEYS, train=True), params)
