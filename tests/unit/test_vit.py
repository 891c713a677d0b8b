from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.patches import patch_grid, patchify, unpatchify
from m3djax.models.positions import LearnedPositions, SinCosPositions, sincos_3d
from m3djax.models.transformer import Block, Transformer
from m3djax.models.vit import ViT3D

IMAGES = jax.random.normal(jax.random.key(0), (2, 4, 8, 12, 1))


def vit(**changes: Any) -> ViT3D:
    transformer = Transformer(3, Block(Attention(2), Mlp(24)))
    return ViT3D((2, 4, 4), 12, transformer, LearnedPositions((2, 2, 3))).clone(**changes)


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.jit(vit().init)(jax.random.key(1), IMAGES)


def forward(model: ViT3D, params: dict, images: jax.Array = IMAGES, **kwargs: Any) -> Any:
    return jax.jit(lambda p, x: model.apply(p, x, **kwargs))(params, images)


def visible(params: dict, keep: jax.Array, images: jax.Array = IMAGES) -> Any:
    return forward(vit(), params, images, keep=keep, method="encode_visible")


def test_patches_are_what_a_strided_convolution_sees() -> None:
    kernel = jax.random.normal(jax.random.key(2), (2, 4, 4, 1, 5))
    convolved = jax.lax.conv_general_dilated(
        IMAGES, kernel, (2, 4, 4), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    patches = patchify(IMAGES, (2, 4, 4)) @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(patches, convolved.reshape(2, 12, 5), atol=1e-5)


def test_patches_and_back() -> None:
    back = unpatchify(patchify(IMAGES, (2, 4, 4)), (2, 2, 3), (2, 4, 4))
    np.testing.assert_array_equal(back, IMAGES)


def test_a_patch_that_does_not_divide_is_explained() -> None:
    with pytest.raises(ValueError, match="side H of the volume has 10 voxels.*size of 8 or 12"):
        patch_grid((4, 10, 8), (2, 4, 4))


def test_features_keep_the_contract(params: dict) -> None:
    model = vit()
    features = forward(model, params, hidden=(0, -1))
    assert features.tokens.shape == (2, 12, 12) and features.grid == (2, 2, 3)
    assert model.depth == 3 and len(features.hidden) == 2 and features.cls is None
    with pytest.raises(IndexError):
        forward(model, params, hidden=(3,))


@pytest.mark.parametrize("change", [{"unroll": 3}, {"remat": "full"}, {"remat": "dots"}], ids=str)
def test_loop_and_memory_options_change_no_number(params: dict, change: dict) -> None:
    def loss(model: ViT3D) -> jax.Array:
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, IMAGES).tokens))))(params)

    changed = vit(transformer=vit().transformer.clone(**change))
    for one, two in zip(*map(jax.tree.leaves, (loss(vit()), loss(changed))), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_bfloat16_is_close_and_parameters_stay_float32(params: dict) -> None:
    half = vit(dtype="bfloat16")
    features = forward(half, params)
    assert features.tokens.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        features.tokens.astype(np.float32), forward(vit(), params).tokens, atol=0.1
    )
    fresh = jax.eval_shape(half.init, jax.random.key(0), IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_keeping_all_patches_in_another_order_reorders_the_tokens(params: dict) -> None:
    order = jnp.stack([jnp.arange(12)[::-1], jnp.roll(jnp.arange(12), 5)])
    features, whole = visible(params, order), forward(vit(), params)
    expected = jnp.take_along_axis(whole.tokens, order[..., None], axis=1)
    np.testing.assert_allclose(features.tokens, expected, atol=1e-5)


def test_what_is_hidden_is_not_seen(params: dict) -> None:
    keep = jnp.tile(jnp.arange(6), (2, 1))
    changed = IMAGES.at[:, 2:].set(100.0)  # the second row of patches along D
    one, two = visible(params, keep), visible(params, keep, changed)
    np.testing.assert_array_equal(one.tokens, two.tokens)


def test_positions_follow_the_grid(params: dict) -> None:
    large = jnp.zeros((1, 8, 16, 12, 1))
    assert forward(vit(), params, large).tokens.shape == (1, 48, 12)
    table = LearnedPositions((2, 2, 3))
    linear = jnp.arange(3.0) * jnp.ones((2, 2, 1))  # rises along W only
    variables = {"params": {"table": jnp.repeat(linear.reshape(12, 1), 4, axis=1)}}
    finer = table.apply(variables, (4, 2, 6), 4).reshape(4, 2, 6, 4)
    np.testing.assert_allclose(np.diff(finer, axis=2)[:, :, 1:-1], 0.5, atol=1e-6)
    np.testing.assert_allclose(np.diff(finer, axis=0), 0, atol=1e-6)


def test_sincos_rows_are_distinct_and_follow_the_tokens() -> None:
    table = sincos_3d((2, 3, 4), 24).reshape(2, 3, 4, 24)
    assert len(np.unique(table.reshape(-1, 24).round(6), axis=0)) == 24
    # The first third encodes D, the second H, the last W.
    for axis in range(3):
        moved = np.moveaxis(table, axis, 0)[..., 8 * axis : 8 * axis + 8]
        assert np.ptp(moved, axis=(1, 2)).max() == 0
    np.testing.assert_array_equal(
        SinCosPositions().apply({}, (2, 3, 4), 24), table.reshape(-1, 24).astype(np.float32)
    )


def test_heads_must_divide_the_width() -> None:
    wrong = vit(transformer=Transformer(1, Block(Attention(5), Mlp(8))))
    with pytest.raises(ValueError, match="num_heads=5 does not divide the width 12"):
        jax.eval_shape(wrong.init, jax.random.key(0), IMAGES)
