"""Addition of tokens to a language model: new rows of the embedding table and the head."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from data_pipelines.errors import ConfigError
from data_pipelines.text import llm_tokenizer
from m3djax.convert.pretrained import Pretrained
from m3djax.mesh import sharding
from m3djax.models.llm.decoder import Decoder
from m3djax.params import flatten, unflatten

_TABLES = {"llm/token_embed/embedding": 0, "llm/head/kernel": 1}  # path -> axis of the vocabulary


def grow(
    pretrained: Pretrained,
    special: Sequence[str] = (),
    plain: Sequence[str] = (),
    *,
    multiple: int = 1,
) -> Pretrained:
    """Returns a model with new tokens.

    New rows of the embedding table and of the head are the mean of the rows of the old tokens. They
    follow the last token and replace rows of padding, as in M3D (Phi-3 has 32,064 rows for 32,011
    tokens, M3D-LaMed-Phi-3 32,015 rows).

    Args:
      pretrained: the model; it is not changed.
      special: new tokens that are left out of decoded text, such as <im_patch>.
      plain: new tokens that are kept in decoded text, such as [SEG].
      multiple: the number of rows is a multiple of this; rows without a token are zero.

    Raises:
      ConfigError: there is no tokenizer, or it already has one of the tokens.
    """
    if pretrained.tokenizer is None:
        raise ConfigError(
            "tokens cannot be added: the model has no tokenizer. Cure: a folder with a tokenizer."
        )
    tokenizer = copy.deepcopy(pretrained.tokenizer)
    before = len(tokenizer)
    llm_tokenizer.add(tokenizer, special, plain)
    after = len(tokenizer)
    rows = -(-after // multiple) * multiple
    flat: dict[str, Any] = flatten(pretrained.params)
    for path, axis in _TABLES.items():
        if path in flat:
            flat[path] = _resized(pretrained.model, path, flat[path], axis, before, after, rows)
    model = dataclasses.replace(
        pretrained.model, vocab_size=rows, num_tokens=None if rows == after else after
    )
    return dataclasses.replace(pretrained, model=model, params=unflatten(flat), tokenizer=tokenizer)


def _resized(
    model: Decoder, path: str, table: jax.Array, axis: int, before: int, after: int, rows: int
) -> Any:
    """Returns the first `before` rows, then their mean up to `after`, then zeros up to `rows`."""

    def build(table: jax.Array) -> jax.Array:
        old = jnp.moveaxis(table, axis, 0)[:before]
        mean = jnp.mean(old.astype(jnp.float32), axis=0, keepdims=True).astype(old.dtype)
        new = jnp.broadcast_to(mean, (after - before, old.shape[1]))
        padding = jnp.zeros((rows - after, old.shape[1]), old.dtype)
        return jnp.moveaxis(jnp.concatenate([old, new, padding]), 0, axis)

    shape = list(table.shape)
    shape[axis] = rows
    place = table.sharding
    if isinstance(place, NamedSharding) and isinstance(mesh := place.mesh, Mesh):
        spec = sharding.parameter_spec(path, tuple(shape), mesh, {"llm": model})
        place = NamedSharding(mesh, spec)
    return jax.jit(build, out_shardings=place)(table)
