"""Compiled text generation: a cache of static shape, and one loop over tokens.

The cache has slots for a shared prefix, then for the prompts, then for the answers. Prompts are
padded on the left, so that all rows write their next token into the same slot. No token attends to
padding (`valid` is False there), and positions count only valid tokens.

Layers are unrolled; each has its own cache and weights. A scan would slice both from stacked
arrays. So it would copy the whole cache and the whole model for every token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from m3djax.contracts.task import apply
from m3djax.generate.chooser import Chooser
from m3djax.mesh.sharding import constrain
from m3djax.models.conditions import Conditions
from m3djax.models.llm.decoder import Decoder, DecoderBlock, block_of

LayerCache = tuple[Array, Array]
"""Keys and values, (b, heads, d, slots) each."""


@struct.dataclass
class Weights:
    """Parameters of a decoder, unstacked by layer.

    Attributes:
      outer: embedding table, last norm and head.
      layers: the parameters of each block.
    """

    outer: dict[str, Any]
    layers: tuple[dict[str, Any], ...]


@struct.dataclass
class Cache:
    """Keys and values of the tokens so far.

    Attributes:
      layers: keys and values of each layer.
      valid: True at slots that hold a token.
    """

    layers: tuple[LayerCache, ...]
    valid: Bool[Array, "b s"]


@struct.dataclass
class State:
    """State of the loop over tokens.

    Attributes:
      step: number of tokens chosen so far.
      tokens: the answers so far; 0 after their ends.
      done: True for rows that have ended.
      cache: see `Cache`; it does not have the last chosen token yet.
      seen: True at tokens of prompt and answer; None without repetition penalty.
      keys: random keys, one per row.
    """

    step: Int[Array, ""]
    tokens: Int[Array, "b t"]
    done: Bool[Array, " b"]
    cache: Cache
    seen: Bool[Array, "b v"] | None
    keys: Key[Array, " b"]


def unstack(model: Decoder, params: dict[str, Any]) -> Weights:
    """Unstacks the weights of a model by layer, on the devices that hold them.

    Args:
      model: the decoder.
      params: its parameters, stages stacked.
    """
    layers: list[dict[str, Any]] = []
    for number, stage in enumerate(model.stages):
        stacked = params[f"stages_{number}"]["block"]
        leaves, structure = jax.tree.flatten(stacked)
        cut = _cutter(tuple(without_first_axis(leaf) for leaf in leaves))
        layers += [jax.tree.unflatten(structure, cut(leaves, i)) for i in range(stage.num_layers)]
    outer = {name: leaf for name, leaf in params.items() if not name.startswith("stages_")}
    return Weights(outer, tuple(layers))


@functools.lru_cache
def _cutter(shardings: tuple[Any, ...]) -> Any:
    """Returns a function that slices layer i from stacked leaves; one per set of shardings."""
    return jax.jit(lambda leaves, i: [leaf[i] for leaf in leaves], out_shardings=list(shardings))


@functools.partial(jax.jit, static_argnames="model")
def embed(model: Decoder, outer: dict[str, Any], ids: Int[Array, "b n"]) -> Float[Array, "b n c"]:
    """Embeds tokens."""
    return apply(model, outer, ids, method="embed")


def empty_cache(model: Decoder, rows: int, slots: int) -> Cache:
    """Returns a cache without tokens."""
    layers = []
    for stage in model.stages:
        attention = block_of(stage).attention
        shape = (rows, attention.num_key_value_heads, attention.head_dim, slots)
        for _ in range(2 * stage.num_layers):
            zeros = jnp.zeros(shape, model.dtype)
            layers.append(constrain(zeros, ("batch", "heads", None, None)))
    pairs = tuple(zip(layers[::2], layers[1::2], strict=True))
    return Cache(pairs, constrain(jnp.zeros((rows, slots), bool), ("batch", None)))


def extend(cache: Cache, rows: int, slots: int) -> Cache:
    """Returns a cache with more slots at its end; a single row is repeated to `rows`."""

    def widen(leaf: Array) -> Array:
        leaf = jnp.broadcast_to(leaf, (rows, *leaf.shape[1:]))
        pad = [(0, 0)] * (leaf.ndim - 1) + [(0, slots - leaf.shape[-1])]
        axes = ("batch", None) if leaf.ndim == 2 else ("batch", "heads", None, None)
        return constrain(jnp.pad(leaf, pad), axes)

    return jax.tree.map(widen, cache)


def forward(
    model: Decoder,
    weights: Weights,
    embeds: Float[Array, "b n c"],
    valid: Bool[Array, "b n"],
    cache: Cache,
    slot: Int[Array, ""] | int,
    length: int,
) -> tuple[Float[Array, "b n c"], Cache]:
    """Runs tokens through the blocks and puts their keys and values into the cache.

    Args:
      model: the decoder.
      weights: its weights.
      embeds: embeddings of the new tokens.
      valid: False at padding.
      cache: the cache of the earlier tokens.
      slot: slot of the first new token.
      length: number of positions of the whole text, see `Rotary`.

    Returns:
      The hidden states of the new tokens, not yet normalised, and the cache with them.
    """
    n, slots = embeds.shape[1], cache.valid.shape[1]
    every = jax.lax.dynamic_update_slice(cache.valid, valid, (0, slot))
    position = jnp.maximum(jnp.cumsum(every, axis=1) - 1, 0)
    here = jax.lax.dynamic_slice_in_dim(position, slot, n, axis=1)
    rotation = model.rotary(here, model.head_dim, length)
    number = jnp.arange(slots)
    causal = every[:, None] & (number[None] <= slot + jnp.arange(n)[:, None])
    x, layers, at = embeds, [], 0
    for stage in model.stages:
        mask, block = causal, block_of(stage)
        if (window := block.attention.window) is not None and slots > window:
            mask = mask & (here[:, :, None] - position[:, None] < window)
        conditions = Conditions(mask[:, None], rotation, slot)  # the same for all heads
        for _ in range(stage.num_layers):
            params, pair = weights.layers[at], cache.layers[at]
            x, pair = _layer(block, params, pair, x, conditions)
            layers.append(pair)
            at += 1
    return x, Cache(tuple(layers), every)


@functools.partial(jax.jit, static_argnames="block")
def _layer(
    block: DecoderBlock,
    params: dict[str, Any],
    cache: LayerCache,
    x: Float[Array, "b n c"],
    conditions: Conditions,
) -> tuple[Float[Array, "b n c"], LayerCache]:
    """Runs one block; it is traced once for all layers, and compiled as a part of the caller."""
    variables = {
        "params": params,
        "cache": {"attention": dict(zip(("keys", "values"), cache, strict=True))},
    }
    x, changed = block.apply(variables, x, conditions, mutable=["cache"])
    found = changed["cache"]["attention"]
    return x, (found["keys"], found["values"])


def scores(model: Decoder, weights: Weights, last: Float[Array, "b c"]) -> Float[Array, "b v"]:
    """Returns float32 logits of the next token; minus infinity for ids without a token."""
    hidden = apply(model, weights.outer, last, method="normalise")
    logits = apply(model, weights.outer, hidden, method="logits").astype(jnp.float32)
    if model.num_tokens is None:
        return logits
    return jnp.where(jnp.arange(model.vocab_size) < model.num_tokens, logits, -jnp.inf)


@functools.partial(jax.jit, static_argnames=("model", "slots", "length"))
def prefill(
    model: Decoder,
    weights: Weights,
    embeds: Float[Array, "b n c"],
    valid: Bool[Array, "b n"],
    prefix: Cache | None,
    *,
    slots: int,
    length: int,
) -> tuple[Float[Array, "b c"], Cache]:
    """Reads prompts; returns the hidden states of their last tokens, and a cache.

    Args:
      model: the decoder.
      weights: its weights.
      embeds: embedded prompts, padded on the left.
      valid: False at padding.
      prefix: the cache of the tokens before the prompts, with one row or a row for each prompt.
      slots: number of slots of the returned cache.
      length: number of positions of the whole text.
    """
    rows = embeds.shape[0]
    start = 0 if prefix is None else prefix.valid.shape[1]
    cache = empty_cache(model, rows, slots) if prefix is None else extend(prefix, rows, slots)
    x, cache = forward(model, weights, embeds.astype(model.dtype), valid, cache, start, length)
    return x[:, -1], cache


@functools.partial(jax.jit, static_argnames=("model", "room"), donate_argnames="cache")
def begin(
    model: Decoder,
    weights: Weights,
    last: Float[Array, "b c"],
    cache: Cache,
    prompts: Int[Array, "b n"] | None,
    done: Bool[Array, " b"],
    keys: Key[Array, " b"],
    chooser: Chooser,
    eos_ids: Int[Array, " e"],
    *,
    room: int,
) -> State:
    """Chooses the first token of every row.

    Args:
      model: the decoder.
      weights: its weights.
      last: the hidden states from `prefill`.
      cache: the cache from `prefill`; it is donated.
      prompts: token ids that the repetition penalty lowers; negative ids are ignored.
      done: True at padding rows, which start as finished.
      keys: random keys, one per row.
      chooser: chooser of tokens.
      eos_ids: tokens that end an answer.
      room: largest number of tokens of an answer.
    """
    rows = jnp.arange(len(last))
    seen = None
    if chooser.penalised:
        seen = jnp.zeros((len(last), model.vocab_size), bool)
        if prompts is not None:
            known = jnp.where(prompts < 0, model.vocab_size, prompts)
            seen = seen.at[rows[:, None], known].set(True, mode="drop")
    tokens = jnp.zeros((len(last), room), jnp.int32)
    state = State(jnp.int32(0), tokens, done, cache, seen, keys)
    return _choose(state, scores(model, weights, last), chooser, eos_ids)


@functools.partial(jax.jit, static_argnames=("model", "length"), donate_argnames="state")
def decode(
    model: Decoder,
    weights: Weights,
    state: State,
    chooser: Chooser,
    eos_ids: Int[Array, " e"],
    until: Int[Array, ""],
    *,
    length: int,
) -> State:
    """Chooses tokens until every row has `until` tokens or has ended.

    Args:
      model: the decoder.
      weights: its weights.
      state: the state after the tokens so far; it is donated.
      chooser: chooser of tokens.
      eos_ids: tokens that end an answer.
      until: number of tokens per row, including those chosen before.
      length: number of positions of the whole text.
    """
    first = state.cache.valid.shape[1] - state.tokens.shape[1]

    def body(state: State) -> State:
        token = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, 1)
        embeds = apply(model, weights.outer, token, method="embed")
        slot = first + state.step - 1
        x, cache = forward(
            model, weights, embeds, jnp.ones_like(token, bool), state.cache, slot, length
        )
        return _choose(
            dataclasses.replace(state, cache=cache),
            scores(model, weights, x[:, 0]),
            chooser,
            eos_ids,
        )

    def unfinished(state: State) -> Array:
        return (state.step < until) & ~jnp.all(state.done)

    ended = jax.lax.while_loop(unfinished, body, _with_layers(state, _without_unit_axis))
    return _with_layers(ended, lambda leaf, like: leaf.reshape(like.shape), state.cache.layers)


def _choose(state: State, logits: Array, chooser: Chooser, eos_ids: Array) -> State:
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.step)
    token = jnp.where(state.done, 0, chooser(logits, state.seen, keys))
    seen = state.seen
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.step)),
        done=state.done | jnp.isin(token, eos_ids),
        seen=seen,
    )


def _with_layers(state: State, change: Callable[..., Array], *others: Any) -> State:
    layers = jax.tree.map(change, state.cache.layers, *others)
    return dataclasses.replace(state, cache=dataclasses.replace(state.cache, layers=layers))


def _without_unit_axis(leaf: Array) -> Array:
    """Drops the axes of rows and of heads if they have size 1.

    XLA drops such an axis in a product, and then keeps each cache in both shapes. So it would copy
    the whole cache for every token.
    """
    return leaf.reshape(*(size for size in leaf.shape[:2] if size > 1), *leaf.shape[2:])


def without_first_axis(leaf: Any) -> Any:
    """Returns the sharding of one layer of a stacked parameter."""
    sharding = leaf.sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        spec = jax.sharding.PartitionSpec(*sharding.spec[1:])
        return jax.sharding.NamedSharding(sharding.mesh, spec)
    return sharding
