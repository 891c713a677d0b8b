"""AdamW, its schedules and its groups, against the formulas in float64 numpy."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3djax.optim import AdamW, Group

PARAMS = {"vision/fc/kernel": jnp.full((2, 2), 2.0), "vision/fc/bias": jnp.full(2, 2.0)}
SHAPES = {
    "vision/fc/kernel": (3, 4),
    "vision/fc/bias": (4,),
    "vision/norm/scale": (5,),
    "llm/token_embed/embedding": (6, 3),
    "llm/q/kernel": (3, 2),
}
GROUPS = (Group("llm/", lr_scale=0.5), Group("llm/q", lr_scale=3.0, weight_decay=0.7))


def rate(config: AdamW, steps: int, step: int) -> float:
    """The learning rate as the docstring of `AdamW` describes it."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    left = {
        "cosine": (1 + np.cos(np.pi * done)) / 2,
        "linear": 1 - done,
        "constant": 1.0,
    }[config.schedule]
    end = 1.0 if config.schedule == "constant" else config.end
    return config.learning_rate * (end + (1 - end) * left)


def settings_of(config: AdamW, path: str, groups: tuple[Group, ...]) -> tuple[float, float]:
    """The factor on the rate and the decay of a parameter: those of the last group it starts as."""
    scale, decay = 1.0, config.weight_decay
    for group in groups:
        if path.startswith(group.pattern):
            scale = group.lr_scale
            decay = config.weight_decay if group.weight_decay is None else group.weight_decay
    return scale, decay if path.endswith("kernel") else 0.0


def trained(
    config: AdamW,
    params: Mapping[str, np.ndarray],
    gradients: list[dict[str, np.ndarray]],
    groups: tuple[Group, ...] = (),
) -> dict[str, np.ndarray]:
    """Parameters after AdamW, algorithm 2 of arXiv 1711.05101, on these gradients."""
    params = {path: value.astype(np.float64) for path, value in params.items()}
    first = {path: np.zeros_like(value) for path, value in params.items()}
    second = {path: np.zeros_like(value) for path, value in params.items()}
    for step, each in enumerate(gradients):
        norm = np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in each.values()))
        clip = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for path, gradient in each.items():
            g = gradient.astype(np.float64) * clip
            first[path] = config.b1 * first[path] + (1 - config.b1) * g
            second[path] = config.b2 * second[path] + (1 - config.b2) * g**2
            m = first[path] / (1 - config.b1 ** (step + 1))
            v = second[path] / (1 - config.b2 ** (step + 1))
            scale, decay = settings_of(config, path, groups)
            update = m / (np.sqrt(v) + config.eps) + decay * params[path]
            params[path] -= rate(config, len(gradients), step) * scale * update
    return params


def drawn(seed: int, size: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {p: (size * rng.normal(size=s)).astype(np.float32) for p, s in SHAPES.items()}


@pytest.mark.parametrize("groups", [(), GROUPS], ids=["no groups", "groups"])
@pytest.mark.parametrize("clip", [0.0, 1.0, 1e3], ids=["no clip", "clip", "large clip"])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_twelve_steps_equal_numpy(schedule: str, clip: float, groups: tuple[Group, ...]) -> None:
    config = AdamW(1e-1, schedule, 0.25, 0.1, weight_decay=0.3, clip_norm=clip)  # type: ignore
    gradients = [drawn(seed, 10.0 ** (seed % 3 - 1)) for seed in range(12)]
    start = drawn(100)
    optimizer = config.build(len(gradients), SHAPES, groups)

    def update(carry: tuple, gradient: dict) -> tuple:
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    stacked = {path: np.stack([each[path] for each in gradients]) for path in SHAPES}
    (found, _), _ = jax.lax.scan(update, (start, optimizer.init(start)), stacked)
    wanted = trained(config, start, gradients, groups)
    for path, value in found.items():
        np.testing.assert_allclose(value, wanted[path], rtol=2e-4, atol=2e-5, err_msg=path)


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


def first_update(config: AdamW, groups: tuple[Group, ...]) -> dict[str, float]:
    """The update of parameters that are all 2 by gradients that are all 1."""
    optimizer = config.build(10, PARAMS, groups)
    grads = {path: jnp.ones_like(value) for path, value in PARAMS.items()}
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    return {path: float(update.ravel()[0]) for path, update in updates.items()}


@pytest.mark.parametrize(
    ("groups", "kernel", "bias"),
    [
        ((Group("vision/", 0.1, 0.0),), -1e-3, -1e-3),
        ((Group("vision/", weight_decay=3.0),), -1e-2 * 7, -1e-2),  # biases have no decay
        ((Group("vision/fc/kernel", 0.0),), 0.0, -1e-2),
        # The last group that matches counts, with all that it says.
        ((Group("vision/", 0.1, 0.0), Group("vision/fc", 2.0)), -2e-2 * 2, -2e-2),
        ((Group("vision/fc", 2.0), Group("vision/", 0.1, 0.0)), -1e-3, -1e-3),
        ((Group(".*bias", 5.0),), -1e-2 * 2, -5e-2),
    ],
)
def test_groups_change_rate_and_decay(
    groups: tuple[Group, ...], kernel: float, bias: float
) -> None:
    config = AdamW(1e-2, "constant", warmup=0, eps=0, weight_decay=0.5, clip_norm=0)
    updates = first_update(config, groups)
    np.testing.assert_allclose(updates["vision/fc/kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(updates["vision/fc/bias"], bias, rtol=1e-5)


@pytest.mark.parametrize("pattern", ["text/", "ision/", "bias"])
def test_a_group_that_matches_nothing_is_refused(pattern: str) -> None:
    """Only the start of a path counts."""
    with pytest.raises(ValueError, match=f"group '{pattern}' matches no trainable.*Cure: a patt"):
        AdamW().build(10, PARAMS, (Group("vision/"), Group(pattern)))


def test_gradients_are_clipped_by_the_global_norm() -> None:
    optimizer = AdamW(clip_norm=1.0, b1=0.0, weight_decay=0, warmup=0).build(10, PARAMS)
    grads = {path: jnp.full_like(value, 100.0) for path, value in PARAMS.items()}
    _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    norm = np.sqrt(sum(np.sum(np.square(m)) for m in state[1].mu.values()))
    np.testing.assert_allclose(norm, 1.0, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_rise_and_fall(schedule: str) -> None:
    config = AdamW(1.0, schedule, warmup=0.1, end=0.1)  # type: ignore[arg-type]
    rates = np.asarray(jax.vmap(config.rate(100))(np.arange(101)))
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-5)
    np.testing.assert_allclose(rates[100], 1.0 if schedule == "constant" else 0.1, rtol=1e-5)
    assert (np.diff(rates[10:]) <= 0).all()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    steps=st.integers(1, 500),
    warmup=st.floats(0, 1),
    end=st.floats(0, 1),
)
def test_every_schedule_equals_its_formula(
    schedule: str, steps: int, warmup: float, end: float
) -> None:
    """Also runs of one step, runs that only warm up, and steps behind the end."""
    config = AdamW(2.0, schedule, warmup, end)  # type: ignore[arg-type]
    at = np.unique(np.linspace(0, steps + 3, 12).astype(int))
    found = np.array([float(config.rate(steps)(int(step))) for step in at])
    np.testing.assert_allclose(found, [rate(config, steps, step) for step in at], atol=1e-5)
    assert (found[at < steps] > 0).all() or end < 1e-3
    assert found.max() <= 2.0 + 1e-6


@pytest.mark.parametrize("steps", [1, 2])
def test_the_first_step_of_a_short_run_trains(steps: int) -> None:
    for warmup in (0.0, 0.5, 1.0):
        assert float(AdamW(1e-3, warmup=warmup).rate(steps)(0)) == pytest.approx(
            1e-3 / max(round(warmup * steps), 1), rel=1e-6
        )
