"""Projectors against the textbook."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from m3djax.models.encoder import Level, VisionFeatures
from m3djax.models.projectors import Projector

GRID = (4, 2, 6)


@pytest.fixture(scope="module")
def features() -> VisionFeatures:
    tokens = jax.random.normal(jax.random.key(0), (2, 48, 5))
    return VisionFeatures((Level(tokens.reshape(2, *GRID, 5), (4, 4, 4)),), cls=tokens[:, 0])


def run(module: Projector, features: VisionFeatures) -> tuple[np.ndarray, dict[str, Any]]:
    out, variables = module.init_with_output(jax.random.key(1), features)
    assert out.shape == (2, module.num_tokens(features.grid), module.features)
    return np.asarray(out), jax.tree.map(np.asarray, variables["params"])


def by_hand(x: np.ndarray, params: dict[str, Any], *, activation: bool) -> np.ndarray:
    for number in range(len(params)):
        if number and activation:
            x = np.asarray(jax.nn.gelu(x, approximate=False))
        layer = params[f"linear_{number}"]
        x = x @ layer["kernel"] + layer["bias"]
    return x


def blocks(features: VisionFeatures, size: tuple[int, int, int]) -> np.ndarray:
    """(b, block, patches of the block in order, channels), with loops."""
    volume = np.asarray(features.tokens).reshape(2, *GRID, -1)
    found = []
    for d in range(0, GRID[0], size[0]):
        for h in range(0, GRID[1], size[1]):
            for w in range(0, GRID[2], size[2]):
                part = volume[:, d : d + size[0], h : h + size[1], w : w + size[2]]
                found.append(part.reshape(2, -1, volume.shape[-1]))
    return np.stack(found, axis=1)


@pytest.mark.parametrize("size", [(2, 2, 2), (4, 1, 3)])
@pytest.mark.parametrize("activation", [True, False])
def test_mean_of_blocks(
    features: VisionFeatures, size: tuple[int, int, int], activation: bool
) -> None:
    """Pooling first, layers after it."""
    out, params = run(Projector(7, "mean", size, 3, activation), features)
    wanted = by_hand(blocks(features, size).mean(axis=2), params, activation=activation)
    np.testing.assert_allclose(out, wanted, atol=1e-5)


def test_sequence_pools_neighbours_in_raster_order(features: VisionFeatures) -> None:
    out, params = run(Projector(7, "sequence", (2, 2, 2)), features)
    pooled = np.asarray(features.tokens).reshape(2, 6, 8, 5).mean(axis=2)
    np.testing.assert_allclose(out, by_hand(pooled, params, activation=True), atol=1e-5)


def test_concat_is_a_convolution_with_stride(features: VisionFeatures) -> None:
    size = (2, 1, 3)
    out, params = run(Projector(7, "concat", size, 1), features)
    volume = np.asarray(features.tokens).reshape(2, *GRID, 5)
    kernel = params["linear_0"]["kernel"].reshape(*size, 5, 7)
    axes = ("NDHWC", "DHWIO", "NDHWC")
    wanted = jax.lax.conv_general_dilated(volume, kernel, size, "VALID", dimension_numbers=axes)
    np.testing.assert_allclose(out, wanted.reshape(2, -1, 7), atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_none_keeps_every_patch(features: VisionFeatures, layers: int) -> None:
    out, params = run(Projector(7, "none", num_layers=layers), features)
    wanted = by_hand(np.asarray(features.tokens), params, activation=True)
    np.testing.assert_allclose(out, wanted, atol=1e-5)


def test_blocks_must_divide_the_grid() -> None:
    with pytest.raises(ConfigError, match="side D of the volume has 3 patches"):
        Projector(7).num_tokens((3, 2, 2))
