"""Linear layers, norms, rotations, projectors and conditions, against float64."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import ConfigError
from m3djax.mesh import sharding
from m3djax.models import layers
from m3djax.models.conditions import NONE, Conditions
from m3djax.models.encoder import Level, VisionFeatures
from m3djax.models.projectors import Projector
from m3djax.models.rotary import Rotary, rotate

SIZES = st.integers(1, 4)


class Layer(nn.Module):
    """One function of `layers`, which names its module."""

    make: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.make(x)(x)


def run(make: Any, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    out, variables = Layer(make).init_with_output(jax.random.key(0), x)
    return out, variables["params"]["layer"]


def normal(*shape: int, mean: float = 0.0, dtype: Any = jnp.float32) -> jax.Array:
    return (mean + jax.random.normal(jax.random.key(1), shape)).astype(dtype)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("dtype, rtol", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_a_linear_layer_computes_in_the_dtype_of_its_input(
    use_bias: bool, dtype: Any, rtol: float
) -> None:
    x = normal(2, 3, 5, dtype=dtype)
    out, params = run(lambda like: layers.dense(7, like, name="layer", use_bias=use_bias), x)
    assert out.dtype == dtype and params["kernel"].shape == (5, 7)
    assert ("bias" in params) == use_bias
    assert all(leaf.dtype == jnp.float32 for leaf in params.values())
    wanted = np.asarray(x, float) @ np.asarray(params["kernel"].astype(dtype), float)
    np.testing.assert_allclose(np.asarray(out, float), wanted, rtol=rtol, atol=rtol)
    # Xavier's bound, and not that of torch or of the default of Flax.
    bound = math.sqrt(6 / (5 + 7))
    assert 0.9 * bound < float(jnp.abs(params["kernel"]).max()) <= bound


def test_a_kernel_is_rounded_before_it_is_gathered() -> None:
    """So that devices exchange two bytes per number instead of four."""
    seen = features(2, 2, 2, dtype=jnp.bfloat16)
    module = Projector(4, num_layers=1)
    params = module.init(jax.random.key(0), seen)
    with jax.set_mesh(sharding.make_mesh((1, 2, 1), jax.devices()[:2])):
        traced = jax.make_jaxpr(module.apply)(params, seen).jaxpr
    gathered = [e.invars[0].aval for e in traced.eqns if e.primitive.name == "sharding_constraint"]
    assert (3, 4) in [aval.shape for aval in gathered]
    assert {aval.dtype for aval in gathered} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("mean", [0.0, 4096.0])
def test_a_layer_norm_keeps_its_digits_far_from_zero(mean: float) -> None:
    x = normal(3, 64, mean=mean)
    out, params = run(lambda like: layers.layer_norm(like, epsilon=1e-2, name="layer"), x)
    exact = np.asarray(x, float)
    spread = exact - exact.mean(-1, keepdims=True)
    wanted = spread / np.sqrt((spread**2).mean(-1, keepdims=True) + 1e-2)
    np.testing.assert_allclose(out, wanted, atol=2e-3)
    assert params["scale"].tolist() == [1] * 64 and params["bias"].tolist() == [0] * 64


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_root_mean_square_norm_is_that_of_its_formula(size: float) -> None:
    x = size * normal(3, 16)
    out, params = run(lambda like: layers.rms_norm(like, epsilon=1e-6, name="layer"), x)
    exact = np.asarray(x, float)
    wanted = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(out, wanted, rtol=1e-5)
    assert params.keys() == {"scale"}


@pytest.mark.parametrize("make", [layers.layer_norm, layers.rms_norm])
def test_norms_of_bfloat16_have_statistics_in_float32(make: Any) -> None:
    """In bfloat16, the sum of 4096 numbers of 1 would stay far below 4096."""
    signs = jnp.where(jnp.arange(4096) % 2, 1.0, -1.0).astype(jnp.bfloat16)[None]
    out, params = run(lambda like: make(like, epsilon=1e-6, name="layer"), signs)
    assert out.dtype == jnp.bfloat16 and params["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(out, signs)


@settings(deadline=None, max_examples=20)
@given(SIZES, st.sampled_from([2, 4, 8]), st.sampled_from([0.5, 1.0]), st.floats(2, 1e6))
def test_a_rotation_is_a_product_of_complex_numbers(
    heads: int, half: int, fraction: float, theta: float
) -> None:
    dim = 2 * half
    turned = int(dim * fraction)
    positions = np.array([[0, 1, 5], [2, 100, 3]])
    x = np.random.default_rng(heads).normal(size=(2, 3, heads, dim)).astype(np.float32)
    rotary = Rotary(theta, fraction)
    found = rotate(jnp.asarray(x), rotary(jnp.asarray(positions), dim, 1))
    pairs = x[..., : turned // 2] + 1j * x[..., turned // 2 : turned].astype(float)
    angles = positions[..., None] * theta ** (-2 * np.arange(turned // 2) / turned)
    pairs = pairs * np.exp(1j * angles)[:, :, None]
    wanted = np.concatenate([pairs.real, pairs.imag, x[..., turned:]], axis=-1)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_rotations_add_up_and_go_back() -> None:
    x, rotary = normal(1, 3, 2, 8), Rotary(100.0)

    def at(*positions: int) -> tuple[jax.Array, jax.Array]:
        return rotary(jnp.array([positions]), 8, 1)

    twice = rotate(rotate(x, at(1, 2, 3)), at(4, 0, 10))
    np.testing.assert_allclose(twice, rotate(x, at(5, 2, 13)), atol=1e-5)
    np.testing.assert_allclose(rotate(rotate(x, at(1, 2, 3)), at(-1, -2, -3)), x, atol=1e-5)


def features(*grid: int, dtype: Any = jnp.float32) -> VisionFeatures:
    """Two levels; the last one is what language models see."""
    other = Level(jnp.zeros((1, 2, 2, 2, 9)), (1, 1, 1))
    return VisionFeatures((other, Level(normal(1, *grid, 3, dtype=dtype), (2, 2, 2))))


@given(st.tuples(SIZES, SIZES, SIZES), st.tuples(SIZES, SIZES, SIZES))
def test_tokens_are_counted_or_the_side_is_named(
    grid: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    assert Projector(merge="none", size=size).num_tokens(grid) == math.prod(grid)
    for merge in ("mean", "sequence", "concat"):
        module = Projector(merge=merge, size=size)  # type: ignore[arg-type]
        if not any(a % b for a, b in zip(grid, size, strict=True)):
            assert module.num_tokens(grid) * math.prod(size) == math.prod(grid)
            continue
        first = next(n for n, a, b in zip("DHW", grid, size, strict=True) if a % b)
        with pytest.raises(ConfigError, match=f"side {first} of the volume has .* patches"):
            module.num_tokens(grid)


def test_means_of_bfloat16_are_taken_in_float32() -> None:
    block = jnp.array([256.0] + [1.0] * 7, jnp.bfloat16).reshape(1, 2, 2, 2, 1)
    out = Projector(num_layers=0).apply({}, VisionFeatures((Level(block, (1, 1, 1)),)))
    assert out.dtype == jnp.bfloat16 and float(out[0, 0, 0]) == 33  # 32.875 rounded, and not 32


def test_blocks_of_a_concat_keep_the_order_of_their_patches() -> None:
    seen = features(2, 4, 2)
    volume = np.asarray(seen.levels[-1].map)[0]
    out = np.asarray(Projector(merge="concat", size=(1, 2, 2), num_layers=0).apply({}, seen))
    for number, (d, h) in enumerate([(0, 0), (0, 2), (1, 0), (1, 2)]):
        np.testing.assert_array_equal(out[0, number], volume[d, h : h + 2].ravel())


def test_one_layer_has_no_activation_and_layers_without_it_are_linear() -> None:
    seen = features(2, 2, 2)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, seen)
    for layers_, activation, linear in ((1, True, True), (3, False, True), (2, True, False)):
        module = Projector(5, "none", num_layers=layers_, activation=activation)
        params = module.init(jax.random.key(0), seen)
        one, two = module.apply(params, seen), module.apply(params, doubled)
        assert bool(jnp.allclose(2 * one, two, rtol=1e-4, atol=1e-5)) == linear


def test_conditions_are_traced_and_their_grid_is_not() -> None:
    assert jax.tree.leaves(NONE) == [] and Conditions() == NONE
    traces: list[Any] = []

    @jax.jit
    def use(conditions: Conditions) -> jax.Array:
        traces.append(conditions.grid)
        assert isinstance(conditions.mask, jax.core.Tracer)
        return conditions.mask.sum() + math.prod(conditions.grid or ())

    mask = jnp.ones((1, 1, 1, 4), bool)
    assert [int(use(Conditions(m, grid=(1, 2, 3)))) for m in (mask, ~mask)] == [10, 6]
    assert int(use(Conditions(mask, grid=(2, 2, 3)))) == 16
    assert traces == [(1, 2, 3), (2, 2, 3)]
    assert len(jax.tree.leaves(Conditions(mask, (mask, mask), slot=3, route={"kind": mask}))) == 5
