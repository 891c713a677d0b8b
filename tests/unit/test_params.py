"""Parameters as nested and as flat dicts: paths, components, and the split by a regex."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import ConfigError
from m3djax import params

TREE = {
    "vision": {"norm": {"scale": jnp.ones(2)}},
    "mae_decoder": {"predict": {"bias": jnp.zeros(3)}},
}
NAMES = st.text("abc_0", min_size=1, max_size=3)
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        st.integers(),
        lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3),
        max_leaves=5,
    ),
    min_size=1,
    max_size=3,
)


@given(TREES)
def test_flat_paths_lead_to_the_leaves_and_back(tree: dict[str, Any]) -> None:
    flat = params.flatten(tree)
    assert params.unflatten(flat) == tree
    for path, leaf in flat.items():
        place: Any = tree
        for name in path.split("/"):
            place = place[name]
        assert place == leaf


@given(TREES, st.sampled_from(["a", "b/.*c", ".*", "c$", "(?!a)", "_|0"]))
def test_a_regex_splits_without_loss(tree: dict[str, Any], pattern: str) -> None:
    flat = params.flatten(tree)
    matching = [path for path in flat if re.match(pattern, path)]
    if not matching:
        with pytest.raises(ConfigError, match="matches no parameter. Cure: a pattern for paths"):
            params.split(flat, pattern)
        return
    match, rest = params.split(flat, pattern)
    assert [*match] == matching
    assert match | rest == flat and not match.keys() & rest.keys()


@given(TREES)
def test_components_are_a_partition(tree: dict[str, Any]) -> None:
    flat = params.flatten(tree)
    parts = {name: params.component(flat, name) for name in tree}
    assert sum(len(part) for part in parts.values()) == len(flat)
    assert {path: leaf for part in parts.values() for path, leaf in part.items()} == flat


def test_a_component_is_not_the_start_of_another_name() -> None:
    flat = {"vision/cls": 1, "vision_head/kernel": 2, "vision": 3, "text/vision/x": 4}
    assert params.component(flat, "vision") == {"vision/cls": 1, "vision": 3}
    assert params.component(flat, "audio") == {}


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
