"""Rotary positions: scores depend on distances, and scalings follow their formulas."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3djax.models.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rotary,
    YarnScaling,
    rotate,
)

DIM, TRAINED = 16, 64
PLAIN = Rotary().frequencies(DIM, 1)


def test_waves_get_longer_by_the_same_factor() -> None:
    assert PLAIN[0] == 1 and len(PLAIN) == DIM // 2
    np.testing.assert_allclose(PLAIN[1:] / PLAIN[:-1], 10000 ** (-2 / DIM))
    np.testing.assert_array_equal(Rotary(fraction=0.5).frequencies(DIM, 1), PLAIN[::2])


def test_scores_depend_on_the_distance_alone() -> None:
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, DIM)), jnp.float32) for _ in range(2))

    @jax.jit
    def score(one: jax.Array, two: jax.Array) -> jax.Array:
        turned = (
            rotate(x, Rotary()(at[None, None], DIM, 1)) for x, at in ((query, one), (key, two))
        )
        return jnp.sum(next(turned) * next(turned))

    near = [float(score(jnp.int32(at), jnp.int32(at + 3))) for at in (0, 5, 100)]
    np.testing.assert_allclose(near, near[0], rtol=1e-4)
    assert abs(float(score(jnp.int32(0), jnp.int32(4))) - near[0]) > 1e-3


def test_lengths_are_kept_and_other_channels_left_alone() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, DIM)).astype(jnp.bfloat16)
    positions = jnp.array([[0, 7, 50], [1, 2, 3]])
    turned = rotate(x, Rotary(fraction=0.5)(positions, DIM, 1))
    assert turned.dtype == x.dtype and turned.shape == x.shape
    np.testing.assert_array_equal(turned[..., DIM // 2 :], x[..., DIM // 2 :])
    np.testing.assert_array_equal(turned[0, 0], x[0, 0])  # position 0
    lengths = [np.linalg.norm(np.asarray(part, np.float32), axis=-1) for part in (turned, x)]
    np.testing.assert_allclose(*lengths, rtol=2e-2)
    assert np.abs(np.asarray(turned - x, np.float32))[0, 1:].max() > 0.1


def test_linear_scaling_is_a_slower_position() -> None:
    scaled = Rotary(scaling=LinearScaling(4.0)).frequencies(DIM, 1)
    np.testing.assert_allclose(scaled * 4, PLAIN)


def test_dynamic_scaling_begins_behind_the_trained_context() -> None:
    scaling = Rotary(scaling=DynamicScaling(2.0, TRAINED))
    for length in (1, TRAINED):
        np.testing.assert_allclose(scaling.frequencies(DIM, length), PLAIN)
    longer = [scaling.frequencies(DIM, TRAINED * times) for times in (2, 4)]
    assert (longer[0][1:] < PLAIN[1:]).all() and (longer[1][1:] < longer[0][1:]).all()
    # The slowest wave is stretched by how much longer the text is, from `factor` on.
    np.testing.assert_allclose(PLAIN[-1] / longer[0][-1], 2 * 2 - 1)


def test_llama_3_keeps_short_waves_and_divides_long_ones() -> None:
    scaling = Llama3Scaling(8.0, low_freq_factor=1.0, high_freq_factor=4.0, trained=TRAINED)
    scaled = Rotary(scaling=scaling).frequencies(DIM, 1)
    waves = 2 * math.pi / PLAIN
    short, long = waves < TRAINED / 4, waves > TRAINED / 1
    assert short.any() and long.any() and not (short | long).all()
    np.testing.assert_allclose(scaled[short], PLAIN[short])
    np.testing.assert_allclose(scaled[long], PLAIN[long] / 8)
    between = ~short & ~long
    assert ((scaled > PLAIN / 8) & (scaled < PLAIN))[between].all()


def test_yarn_keeps_fast_dimensions_and_interpolates_slow_ones() -> None:
    scaling = YarnScaling(4.0, trained=4096, amplitude=1.2)
    scaled = Rotary(scaling=scaling).frequencies(DIM, 1)
    turns = 4096 * PLAIN / (2 * math.pi)
    share = PLAIN / scaled
    assert (np.diff(share) >= -1e-9).all(), "slower dimensions are stretched no less"
    np.testing.assert_allclose(share[turns > 200], 1)
    np.testing.assert_allclose(share[turns < 0.2], 4)
    cos, sin = Rotary(scaling=scaling)(jnp.array([[5]]), DIM, 1)
    np.testing.assert_allclose(cos**2 + sin**2, 1.2**2, rtol=1e-5)


def test_yarn_without_whole_dimensions_has_another_ramp() -> None:
    exact = YarnScaling(4.0, 4096, truncate=False)(PLAIN, 10000.0, 1)
    whole = YarnScaling(4.0, 4096)(PLAIN, 10000.0, 1)
    assert np.abs(exact / whole - 1).max() > 1e-3
    # A ramp of no width is a step, and no division by zero.
    step = YarnScaling(4.0, 4096, beta_fast=1.0, beta_slow=1.0, truncate=False)
    np.testing.assert_allclose(np.unique(np.round(PLAIN / step(PLAIN, 10000.0, 1), 6)), [1, 4])


def test_long_texts_have_divisors_of_their_own() -> None:
    short, long = (1.0,) * 8, tuple(np.arange(1.0, 9.0))
    scaling = Rotary(scaling=LongRopeScaling(short, long, TRAINED, amplitude=1.5))
    np.testing.assert_allclose(scaling.frequencies(DIM, TRAINED), PLAIN)
    np.testing.assert_allclose(scaling.frequencies(DIM, TRAINED + 1), PLAIN / np.array(long))
    cos, _ = scaling(jnp.array([[0]]), DIM, 1)
    np.testing.assert_allclose(cos, 1.5)


@pytest.mark.parametrize("theta", [10.0, 10000.0, 500000.0])
def test_frequencies_are_exact(theta: float) -> None:
    """In float64: far positions of a large base lose nothing before they are cosines."""
    found = Rotary(theta).frequencies(8, 1)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [theta**-share for share in (0, 0.25, 0.5, 0.75)], rtol=1e-14)
    np.testing.assert_allclose(np.log(found), -np.arange(4) / 4 * math.log(theta), rtol=1e-12)
