"""Parameters as nested dicts and as flat dicts {"component/module/.../leaf": array}.

Checkpoints store the flat form only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
from flax import traverse_util

from data_pipelines.errors import ConfigError

Params = dict[str, Any]  # component -> nested dict of arrays, as Linen's apply takes it
Dtype = Literal["float32", "bfloat16"]
FlatParams = dict[str, jax.Array]  # path -> array


def flatten(params: Params) -> FlatParams:
    """Returns nested dicts as one dict with paths as keys."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Returns the nested dicts of a flat dict: the inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def split(flat: FlatParams, pattern: str) -> tuple[FlatParams, FlatParams]:
    """Splits parameters into those whose path starts with a match of the regex, and the rest.

    Raises:
      ConfigError: the regex matches no parameter, which is most likely a typing error.
    """
    match = {path: leaf for path, leaf in flat.items() if re.match(pattern, path)}
    if not match:
        components = sorted({path.split("/")[0] for path in flat})
        raise ConfigError(
            f"trainable={pattern!r} matches no parameter. Cure: a pattern for paths that start "
            f"with one of {components}."
        )
    return match, {path: leaf for path, leaf in flat.items() if path not in match}


def component(flat: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the leaves of one component by their full paths."""
    return {path: leaf for path, leaf in flat.items() if path.split("/")[0] == name}
