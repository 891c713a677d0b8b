from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from m3djax.optim import AdamW, Group

PARAMS = {"vision/fc/kernel": jnp.full((2, 2), 2.0), "vision/fc/bias": jnp.full(2, 2.0)}


def test_one_step_is_adamw_by_hand() -> None:
    config = AdamW(
        1e-2, "constant", warmup=0, b1=0.9, b2=0.95, eps=0, weight_decay=0.5, clip_norm=0
    )
    optimizer = config.build(10, PARAMS)
    grads = {path: jnp.full_like(value, 3.0) for path, value in PARAMS.items()}
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    # After bias correction the first step is the sign of the gradient, times the rate.
    np.testing.assert_allclose(updates["vision/fc/bias"], -1e-2, rtol=1e-5)
    np.testing.assert_allclose(updates["vision/fc/kernel"], -1e-2 * (1 + 0.5 * 2), rtol=1e-5)


def test_groups_scale_rate_and_decay() -> None:
    config = AdamW(1e-2, "constant", warmup=0, eps=0, weight_decay=0.5, clip_norm=0)
    groups = (Group("vision/", lr_scale=0.1, weight_decay=0.0),)
    optimizer = config.build(10, PARAMS, groups)
    grads = {path: jnp.ones_like(value) for path, value in PARAMS.items()}
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["vision/fc/kernel"], -1e-3, rtol=1e-5)
    with pytest.raises(ValueError, match="group 'text/' matches no trainable"):
        config.build(10, PARAMS, (Group("text/"),))


def test_gradients_are_clipped_by_the_global_norm() -> None:
    optimizer = AdamW(clip_norm=1.0, b1=0.0, weight_decay=0, warmup=0).build(10, PARAMS)
    grads = {path: jnp.full_like(value, 100.0) for path, value in PARAMS.items()}
    _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    norm = np.sqrt(sum(np.sum(np.square(m)) for m in state[1].mu.values()))
    np.testing.assert_allclose(norm, 1.0, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_rise_and_fall(schedule: str) -> None:
    config = AdamW(1.0, schedule, warmup=0.1, end=0.1)
    rates = np.array([config.rate(100)(step) for step in range(101)])
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-5)
    np.testing.assert_allclose(rates[100], 1.0 if schedule == "constant" else 0.1, rtol=1e-5)
    assert (np.diff(rates[10:]) <= 0).all()
