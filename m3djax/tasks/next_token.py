"""The next-token loss of a language model. It never holds the logits of a whole batch."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from data_pipelines.errors import ConfigError
from m3djax.contracts.sown import collecting
from m3djax.contracts.task import apply
from m3djax.contracts.terms import Loss, Term
from m3djax.mesh.sharding import gather
from m3djax.models.llm.decoder import Decoder
from m3djax.params import flatten, unflatten

Reduction = Literal["token", "square", "sample"]
IGNORE = -100
"""The label of a token that the loss ignores, as in torch."""
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
    """Returns the weighted negative log-likelihood of the next tokens.

    The sequence is scanned in chunks. The backward pass computes the logits of a chunk again, so
    that only (b, logits_chunk, v) logits exist at once, not (b, n, v). A sequence that fits into
    one chunk is computed once.

    Args:
      model: the decoder, for its output head.
      params: parameters of the decoder.
      hidden: the result of `Decoder.encode`.
      labels: token ids, not shifted; `IGNORE` for tokens that the loss ignores.
      logits_chunk: tokens per row whose logits exist at once.
      z_loss: weight of the squared log of the softmax's denominator. It keeps logits small
        (arXiv 2204.02311, section 5).
      counted: largest number of counted tokens per row; 0: no limit. The head is applied only to
        this number of tokens, which saves time if most of a text is prompt. A row with more counted
        tokens makes the loss NaN, so that the step is refused.
      reduction: weights of the tokens. "token": all tokens count equally, so that long answers
        outweigh short ones. "sample": all rows count equally. "square" lies between them: the
        weight of a token is one over the square root of the number of counted tokens in its row
        (InternVL 2.5, arXiv 2412.05271, section 3.3).

    Raises:
      ConfigError: a module of the output head sows a term of the loss.
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
        with collecting() as sown:
            logits = apply(model, params, hidden, method="logits").astype(jnp.float32)
        if jax.tree.leaves(sown):
            raise ConfigError(
                "a module of the output head adds a term to the loss, and the head is applied in "
                "chunks. Cure: call m3djax.contracts.sow in a block instead."
            )
        total = jax.nn.logsumexp(logits, axis=-1)
        counts = labels != IGNORE
        weighed = counts * weights[:, None]
        right = jnp.take_along_axis(logits, jnp.where(counts, labels, 0)[..., None], -1)[..., 0]
        return jnp.sum((total - right) * weighed), jnp.sum(jnp.square(total) * weighed)

    if logits_chunk < n:  # the logits of a single chunk are kept
        one = jax.checkpoint(one)

    def step(sums: tuple[Array, Array], part: tuple[Array, Array]) -> Any:
        return jax.tree.map(jnp.add, sums, one(head, *part)), None

    # Only the parameters of the head, so that the scan carries no other gradients.
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
    """Returns `counted` tokens per row: all that count, and others in the remaining places."""
    ignored = shifted == IGNORE
    order = jnp.argsort(ignored, axis=1, stable=True)[:, :counted]
    too_many = jnp.sum(~ignored, axis=1) > counted
    hidden = jnp.take_along_axis(hidden, order[..., None], axis=1)
    hidden = jnp.where(too_many[:, None, None], jnp.nan, hidden)
    return hidden, jnp.take_along_axis(shifted, order, axis=1)


def _whole(model: Decoder, path: str, leaf: Array, like: Array) -> Array:
    """Returns a parameter gathered once for all chunks.

    The cast before the gather moves fewer bytes. Gradients still add up in the leaf's dtype.
    """
    return gather(model, path, leaf.astype(like.dtype)).astype(leaf.dtype)


def spans_to_labels(token_ids: Int[Array, "b n"], spans: Int[Array, "b s 2"]) -> Int[Array, "b n"]:
    """Returns the token ids inside the spans, and `IGNORE` elsewhere.

    Args:
      token_ids: ids of the text.
      spans: first position of each span, and the position past its last. (0, 0) is an empty span.
    """
    at = jnp.arange(token_ids.shape[1])
    inside = (at >= spans[..., :1]) & (at < spans[..., 1:])
    return jnp.where(jnp.any(inside, axis=1), token_ids, IGNORE)
