"""Parameters as flat dicts {"component/module/.../leaf": array}: the one form that is stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
from flax import traverse_util

from data_pipelines.errors import ConfigError

Params = dict[str, Any]  # component -> nested dict of arrays, what Linen's apply takes
Dtype = Literal["float32", "bfloat16"]
FlatParams = dict[str, jax.Array]  # path -> array


def flatten(params: Params) -> FlatParams:
    """Nested dicts to one dict keyed by path."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def split(flat: FlatParams, pattern: str) -> tuple[FlatParams, FlatParams]:
    """Those whose path matches the regex from its start, and the rest.

    Raises:
      ValueError: if nothing matches: a run that trains nothing is a typing error.
    """
    match = {path: leaf for path, leaf in flat.items() if re.match(pattern, path)}
    if not match:
        components = sorted({path.split("/")[0] for path in flat})
        raise ConfigError(
            f"trainable={pattern!r} matches no parameter. Cure: paths start with {components}."
        )
    return match, {path: leaf for path, leaf in flat.items() if path not in match}


def component(flat: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The leaves of one component, with their full paths."""
    return {path: leaf for path, leaf in flat.items() if path.split("/")[0] == name}
