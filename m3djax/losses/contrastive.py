"""Contrastive objectives over the global batch: InfoNCE and the pairwise sigmoid loss.

Both take unit vectors of images and texts, row i of one belonging to row i of the other, and
`text_id`, which is equal where captions are equal. Equal captions are equally right:

- InfoNCE: the target of an image is spread evenly over all texts with the caption's id, and that of
  a text over all images that carry it. With all ids different this is the usual cross-entropy.
- Sigmoid: a pair's label is +1 where the ids are equal, and -1 elsewhere.

Rows whose `valid` is False (no text) take no part, neither as questions nor as answers.
"""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from m3djax.contracts.terms import Loss, Term
from m3djax.losses.sigmoid import dense_sigmoid_loss, ring_sigmoid_loss
from m3djax.mesh.parameter_axes import register_axes
from m3djax.mesh.sharding import constrain

_NEVER = -1e30  # a logit whose exponential is 0, and which a weight of 0 can still silence


class InfoNCE(nn.Module):
    """Symmetric cross-entropy over all pairs of the global batch (CLIP, arXiv 2103.00020, fig. 3).

    The B x B logits are split over the rows of the batch: no device holds more than its own rows,
    and one side's features are gathered for them.

    Attributes:
      temperature: what the logits are divided by at the start of training.
      max_scale: largest factor on the cosines, for the corrected form.
      released: M3D's form (BAAI-DCAI/M3D, CLIP.py): the parameter starts at ln(1 / temperature), is
        used as the factor itself, without exp, and has no limit. The corrected form trains the
        logarithm of the factor.
    """

    temperature: float = 0.07
    max_scale: float = 100.0
    released: bool = False

    def setup(self) -> None:
        """One number."""
        name = "scale" if self.released else "log_scale"
        self.parameter = self.param(name, _log_scale, self.temperature)

    def factor(self) -> Float[Array, ""]:
        """What cosines are multiplied by."""
        return self.parameter if self.released else _bounded_exp(self.parameter, self.max_scale)

    def __call__(
        self,
        images: Float[Array, "b d"],
        texts: Float[Array, "b d"],
        text_id: Int[Array, " b"],
        valid: Bool[Array, " b"],
    ) -> Loss:
        """Sum over the batch of the mean of both directions' cross-entropies; see the module."""
        factor, rows = self.factor(), _count(valid)
        pair = constrain(valid[:, None] & valid[None, :], ("batch", None))
        logits = jnp.where(pair, pairwise_logits(images, texts, factor), _NEVER)
        same = pair & (text_id[:, None] == text_id[None, :])
        # Equal ids are as many for an image as for its text: one target serves both directions.
        target = same / jnp.maximum(jnp.sum(same, axis=1, keepdims=True), 1)
        both = sum(jnp.sum(valid * jax.nn.logsumexp(logits, axis)) for axis in (1, 0))
        total = 0.5 * both - jnp.sum(target * logits)
        hits = [_hits(jax.lax.stop_gradient(logits), same, axis) for axis in (1, 0)]
        metrics = {"image_to_text": hits[0], "text_to_image": hits[1], "scale": factor * rows}
        means = {name: Term(total, rows) for name, total in metrics.items()}
        return Loss({"info_nce": Term(total, rows)}, means)


register_axes(InfoNCE, {"scale|log_scale": ()})


class SigmoidPairs(nn.Module):
    """Every pair is a yes-or-no question (SigLIP, arXiv 2303.15343, eq. 1).

    Attributes:
      temperature: what the logits are divided by at the start of training.
      bias: what is added to them at the start; negative, as almost all pairs are wrong.
      max_scale: largest factor on the cosines.
      form: "ring" passes texts round the devices and never holds more than a block of logits;
        "dense" holds its rows of the B x B logits. Equal in value and gradient.
      block: columns of logits that a device of the ring holds at a time.
    """

    temperature: float = 0.1
    bias: float = -10.0
    max_scale: float = 100.0
    form: Literal["ring", "dense"] = "ring"
    block: int = 1024

    def setup(self) -> None:
        """Two numbers."""
        self.log_scale = self.param("log_scale", _log_scale, self.temperature)
        self.shift = self.param("bias", lambda _: jnp.float32(self.bias))

    def factor(self) -> Float[Array, ""]:
        """What cosines are multiplied by."""
        return _bounded_exp(self.log_scale, self.max_scale)

    def __call__(
        self,
        images: Float[Array, "b d"],
        texts: Float[Array, "b d"],
        text_id: Int[Array, " b"],
        valid: Bool[Array, " b"],
    ) -> Loss:
        """Sum over all pairs of -log sigmoid(label * logit); the weight is the batch."""
        factor, bias, rows = self.factor(), self.shift, _count(valid)
        pairs = (images, texts, text_id, valid, factor, bias)
        if self.form == "ring":
            total = ring_sigmoid_loss(*pairs, block=self.block)
        else:
            total = dense_sigmoid_loss(*pairs)
        metrics = {"scale": Term(factor * rows, rows), "bias": Term(bias * rows, rows)}
        return Loss({"sigmoid": Term(total, rows)}, metrics)


register_axes(SigmoidPairs, {"log_scale|bias": ()})


def pairwise_logits(
    images: Float[Array, "b d"], texts: Float[Array, "c d"], factor: Float[Array, ""]
) -> Float[Array, "b c"]:
    """Cosine of every image with every text times `factor`, float32, rows split over the mesh."""
    images = constrain(images.astype(jnp.float32), ("batch", None))
    texts = constrain(texts.astype(jnp.float32), (None, None))
    return constrain(factor * images @ texts.T, ("batch", None))


def _hits(logits: Float[Array, "b c"], same: Array, axis: int) -> Float[Array, ""]:
    """For how many rows (axis 1) or columns (axis 0) a right answer has the highest logit."""
    right = jnp.max(jnp.where(same, logits, -jnp.inf), axis)
    return jnp.sum(right >= jnp.max(logits, axis), dtype=jnp.float32)


def _count(valid: Bool[Array, " b"]) -> Float[Array, ""]:
    """Rows that take part; 1 rather than 0, as it is divided by."""
    return jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1)


def _log_scale(_: Array, temperature: float) -> Float[Array, ""]:
    return jnp.float32(math.log(1 / temperature))


def _bounded_exp(log_scale: Float[Array, ""], limit: float) -> Float[Array, ""]:
    """min(exp(log_scale), limit), with a gradient at the limit that leads back only.

    A plain minimum has none there: the parameter, once beyond, would never move again.
    """
    return jnp.exp(_at_most(log_scale, math.log(limit)))


@jax.custom_vjp
def _at_most(x: Float[Array, ""], limit: float) -> Float[Array, ""]:
    return jnp.minimum(x, limit)


def _at_most_forward(x: Array, limit: float) -> tuple[Array, Array]:
    return jnp.minimum(x, limit), x >= limit


def _at_most_backward(beyond: Array, gradient: Array) -> tuple[Array, None]:
    # Descent goes against the gradient: a negative one would push further up.
    return jnp.where(beyond, jnp.maximum(gradient, 0), gradient), None


_at_most.defvjp(_at_most_forward, _at_most_backward)
