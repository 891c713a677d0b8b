from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3djax.augment import Augment, Intensity, Window


def batch(rows: int = 4) -> dict[str, jax.Array]:
    image = jax.random.randint(jax.random.key(0), (rows, 4, 6, 8, 1), -1200, 2000, jnp.int16)
    return {"image": image, "scale": jnp.ones(rows), "offset": jnp.zeros(rows)}


def test_window_is_linear_between_its_ends() -> None:
    window = Window(-1000, 1000, to=(-1, 1), mean=0.4978, std=0.2449)
    hu = jnp.array([-2000.0, -1000.0, 0.0, 1000.0, 3000.0])
    expected = (np.array([-1, -1, 0, 1, 1]) - 0.4978) / 0.2449
    np.testing.assert_allclose(window(hu), expected, rtol=1e-5)
    np.testing.assert_allclose(
        window.hu_per_unit * (window(hu)[2] - window(hu)[1]), 1000, rtol=1e-5
    )
    np.testing.assert_allclose(window.inverse(window(hu)), np.clip(hu, -1000, 1000), atol=1e-2)
    with pytest.raises(ValueError, match="low must be below high"):
        Window(100, 100)


def test_stored_integers_become_real_values() -> None:
    data = batch() | {"scale": jnp.full(4, 0.5), "offset": jnp.full(4, 100.0)}
    keys = jax.random.split(jax.random.key(1), 4)
    images = Intensity()(data, keys, train=False)
    np.testing.assert_allclose(images, Window()(data["image"] * 0.5 + 100.0), atol=1e-6)


def test_evaluation_has_no_randomness() -> None:
    intensity = Intensity(augment=Augment((0.5, 0.5, 0.5), scale=0.1, shift=0.1))
    one, two = (
        intensity(batch(), jax.random.split(jax.random.key(seed), 4), train=False)
        for seed in (1, 2)
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flips_act_on_their_axis_alone(axis: int) -> None:
    chances = tuple(float(i == axis) for i in range(3))
    keys = jax.random.split(jax.random.key(1), 4)
    flipped = Intensity(augment=Augment(chances))(batch(), keys, train=True)
    plain = Intensity()(batch(), keys, train=False)
    np.testing.assert_array_equal(flipped, jnp.flip(plain, axis + 1))


def test_jitter_is_drawn_per_sample_and_stays_in_range() -> None:
    image = jnp.full((2, 2, 2, 1), 0.5)
    augment = Augment(scale=0.2, shift=0.1, jitter=0.5)
    values = jax.vmap(lambda key: augment(key, image)[0, 0, 0, 0])(
        jax.random.split(jax.random.key(0), 2000)
    )
    assert 0.3 - 1e-6 <= values.min() < 0.35 and 0.65 < values.max() <= 0.7 + 1e-6
    np.testing.assert_allclose((jnp.abs(values - 0.5) < 1e-6).mean(), 0.25, atol=0.05)


def test_quarter_turns_stay_in_the_axial_plane() -> None:
    image = jax.random.normal(jax.random.key(0), (3, 6, 6, 1))
    keys = jax.random.split(jax.random.key(1), 64)
    turned = np.asarray(jax.vmap(lambda key: Augment(rotate90=0.5)(key, image))(keys))
    counts = [sum(np.array_equal(t, jnp.rot90(image, k, (1, 2))) for t in turned) for k in range(4)]
    assert sum(counts) == 64 and 20 <= counts[0] <= 44 and min(counts[1:]) >= 3
    with pytest.raises(ValueError, match="rotate90 needs H = W"):
        Augment(rotate90=0.5)(keys[0], image[:, :4])
