"""The contract of all encoders."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from m3djax.models.encoder import Encoder, Level, VisionFeatures
from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.transformer import Block, Transformer
from m3djax.models.vit import ViT3D
from tests import tiny
from tests.pyramid import Pyramid

SIZE = (8, 16, 32)
VIT = ViT3D((4, 4, 8), 12, Transformer(3, Block(Attention(2), Mlp(24))))
ENCODERS = [VIT, VIT.clone(cls_token=True), Pyramid()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("encoder", ENCODERS, ids=["vit", "vit_cls", "pyramid"])
def test_features_are_as_stated(encoder: Encoder, dtype: str) -> None:
    encoder = encoder.clone(dtype=dtype)
    hidden = (0, -1, encoder.depth - 1)

    def run(key: jax.Array, images: jax.Array) -> VisionFeatures:
        return encoder.init_with_output(key, images, hidden=hidden)[0]

    found = jax.eval_shape(run, jax.random.key(0), jnp.zeros((2, *SIZE, 1)))
    assert len(found.levels) == encoder.num_levels == len(encoder.widths)
    stated = zip(found.levels, encoder.strides, encoder.widths, strict=True)
    for level, stride, width in stated:
        assert level.stride == stride and level.map.dtype == dtype
        assert level.map.shape == (2, *np.array(SIZE) // stride, width)
    assert found.grid == encoder.grid(SIZE) == tuple(np.array(SIZE) // encoder.stride)
    for layer, features in zip(hidden, found.hidden, strict=True):
        assert features.grid == tuple(np.array(SIZE) // encoder.hidden_strides[layer])
    with pytest.raises(ConfigError, match="side D of the volume has 7 voxels"):
        encoder.grid((7, 16, 32))
    with pytest.raises(ConfigError, match="side H of the volume has 10 voxels"):
        jax.eval_shape(run, jax.random.key(0), jnp.zeros((1, 8, 10, 32, 1)))


def test_tokens_are_the_last_level_in_raster_order() -> None:
    fine, coarse = jnp.zeros((1, 4, 6, 8, 2)), jnp.arange(48.0).reshape(1, 2, 3, 4, 2)
    features = VisionFeatures((Level(fine, (2, 2, 2)), Level(coarse, (4, 4, 4))))
    assert features.grid == (2, 3, 4)
    np.testing.assert_array_equal(features.tokens[0, :, 0], np.arange(0, 48, 2))


def test_a_masked_autoencoder_needs_an_encoder_of_single_patches() -> None:
    with pytest.raises(ConfigError, match="Pyramid cannot leave out patches.*Cure: ViT3D"):
        tiny.mae(vision=Pyramid())
