from __future__ import annotations

import jax.numpy as jnp
import pytest

from m3djax import params

TREE = {
    "vision": {"norm": {"scale": jnp.ones(2)}},
    "mae_decoder": {"predict": {"bias": jnp.zeros(3)}},
}


def test_flatten_and_back() -> None:
    flat = params.flatten(TREE)
    assert sorted(flat) == ["mae_decoder/predict/bias", "vision/norm/scale"]
    assert params.flatten(params.unflatten(flat)).keys() == flat.keys()


def test_split_by_pattern() -> None:
    trainable, frozen = params.split(params.flatten(TREE), "mae_decoder/")
    assert list(trainable) == ["mae_decoder/predict/bias"]
    assert list(frozen) == ["vision/norm/scale"]


def test_a_pattern_that_matches_nothing_names_the_components() -> None:
    with pytest.raises(ValueError, match=r"'visoin/' matches no parameter.*mae_decoder.*vision"):
        params.split(params.flatten(TREE), "visoin/")
