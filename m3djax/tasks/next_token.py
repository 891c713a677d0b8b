"""The loss of a language model: the next token, without logits of a whole batch in memory."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from m3djax.contracts.task import apply
from m3djax.contracts.terms import Loss, Term
from m3djax.mesh.sharding import gather
from m3djax.models.llm.decoder import Decoder
from m3djax.params import flatten, unflatten

Reduction = Literal["token", "square", "sample"]
IGNORE = -100
"""The label of a token that the loss does not count, as in torch."""
_POWERS = {"token": 0.0, "square": -0.5, "sample": -1.0}


def next_token_loss(
    model: Decoder,
    params: dict[str, Any],
    hidden: Float[Array, "b n c"],
    labels: Int[Array, "b n"],
    *,
    logits_chunk: int = 128,
    z_loss: float = 0.0,
    counted: int = 0,
    reduction: Reduction = "token",
) -> Loss:
    """Sum of the negative log-likelihoods of the tokens after each token, and of their weights.

    The sequence is scanned in chunks whose logits the backward pass computes again: (b, n, v) never
    exists, only (b, logits_chunk, v). What fits into one chunk is computed once.

    Args:
      model: the decoder, for its head.
      params: its parameters.
      hidden: what `Decoder.encode` returned.
      labels: the token ids themselves, not shifted; `IGNORE` where they do not count.
      logits_chunk: tokens per row whose logits exist at once.
      z_loss: weight of the squared log of the softmax's denominator, which keeps logits small
        (arXiv 2204.02311, section 5).
      counted: most tokens of a row that count, where most of a text is prompt: the head is applied
        to so many only. 0: all of them may count. A row with more makes the loss NaN, so that the
        step is refused.
      reduction: what counts alike: "token" every token, so that long answers outweigh short ones;
        "sample" every row; "square" is between them, every token by one over the square root of
        how many its row has (InternVL 2.5, arXiv 2412.05271, section 3.3).
    """
    shifted = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)
    if 0 < counted < hidden.shape[1]:
        hidden, shifted = _only_counted(hidden, shifted, counted)
    numbers = jnp.sum(shifted != IGNORE, axis=1)
    weights = jnp.maximum(numbers, 1).astype(jnp.float32) ** _POWERS[reduction]
    b, n, c = hidden.shape
    logits_chunk = min(logits_chunk, n)
    rest = -n % logits_chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, rest), (0, 0)))
    shifted = jnp.pad(shifted, ((0, 0), (0, rest)), constant_values=IGNORE)
    parts = (
        jnp.moveaxis(hidden.reshape(b, -1, logits_chunk, c), 1, 0),
        jnp.moveaxis(shifted.reshape(b, -1, logits_chunk), 1, 0),
    )

    def one(params: dict[str, Any], hidden: Array, labels: Array) -> tuple[Array, Array]:
        logits = apply(model, params, hidden, method="logits").astype(jnp.float32)
        total = jax.nn.logsumexp(logits, axis=-1)
        counts = labels != IGNORE
        weighed = counts * weights[:, None]
        right = jnp.take_along_axis(logits, jnp.where(counts, labels, 0)[..., None], -1)[..., 0]
        return jnp.sum((total - right) * weighed), jnp.sum(jnp.square(total) * weighed)

    if logits_chunk < n:  # of a single chunk the logits may as well be kept
        one = jax.checkpoint(one)

    def step(sums: tuple[Array, Array], part: tuple[Array, Array]) -> Any:
        return jax.tree.map(jnp.add, sums, one(head, *part)), None

    # Only what the head needs, so that the scan carries no other gradients.
    part = "token_embed" if model.tie_word_embeddings else "head"
    flat = flatten({part: params[part]})
    head = unflatten({path: _whole(model, path, leaf, hidden) for path, leaf in flat.items()})
    zero = jnp.float32(0)
    (total, squares), _ = jax.lax.scan(step, (zero, zero), parts)
    weight = jnp.sum(numbers * weights)
    nll = Term(total, weight)
    if not z_loss:
        return Loss({"next_token": nll}, {"nll": nll})
    z = Term(squares, weight, z_loss)
    return Loss({"next_token": nll, "z_loss": z}, {"nll": nll, "z_loss": z})


def _only_counted(
    hidden: Float[Array, "b n c"], shifted: Int[Array, "b n"], counted: int
) -> tuple[Float[Array, "b k c"], Int[Array, "b k"]]:
    """The tokens that count, and as many others as there is room for."""
    ignored = shifted == IGNORE
    order = jnp.argsort(ignored, axis=1, stable=True)[:, :counted]
    too_many = jnp.sum(~ignored, axis=1) > counted
    hidden = jnp.take_along_axis(hidden, order[..., None], axis=1)
    hidden = jnp.where(too_many[:, None, None], jnp.nan, hidden)
    return hidden, jnp.take_along_axis(shifted, order, axis=1)


def _whole(model: Decoder, path: str, leaf: Array, like: Array) -> Array:
    """Gathered once for all chunks, as few bytes; gradients still add up in the leaf's dtype."""
    return gather(model, path, leaf.astype(like.dtype)).astype(leaf.dtype)


def spans_to_labels(token_ids: Int[Array, "b n"], spans: Int[Array, "b s 2"]) -> Int[Array, "b n"]:
    """Labels that count inside of spans only.

    Args:
      token_ids: the text.
      spans: first and past-the-last position of every span; empty ones (0, 0) count for nothing.
    """
    at = jnp.arange(token_ids.shape[1])
    inside = (at >= spans[..., :1]) & (at < spans[..., 1:])
    return jnp.where(jnp.any(inside, axis=1), token_ids, IGNORE)
