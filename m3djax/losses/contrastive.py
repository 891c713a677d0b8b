"""Contrastive objectives over the global batch: InfoNCE and the pairwise sigmoid loss.

Both take unit vectors of images and texts, and `text_id`. Row i of the images matches row i of the
texts. Equal captions have equal ids, and all of them are correct matches:

- InfoNCE: the target of an image is spread evenly over all texts with the id of its caption. The
  target of a text is spread evenly over all images with its id. If all ids differ, this is the
  usual cross-entropy.
- Sigmoid: the label of a pair is +1 for equal ids, and -1 otherwise.

Rows whose `valid` is False (no text) are left out, both as images and as texts.
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

_NEVER = -1e30  # exp of it is 0; unlike -inf, it times a weight of 0 is 0


class InfoNCE(nn.Module):
    """Symmetric cross-entropy over all pairs of the global batch (CLIP, arXiv 2103.00020, fig. 3).

    The B x B logits are split over the rows of the batch. Each device holds the logits of its own
    rows, and gathers the features of the texts for them.

    Attributes:
      temperature: initial divisor of the logits.
      max_scale: largest factor on the cosines, for the corrected form.
      released: whether to use M3D's form (BAAI-DCAI/M3D, CLIP.py). Its parameter starts at
        ln(1 / temperature), is used as the factor itself, without exp, and has no limit. The
        corrected form trains the logarithm of the factor.
    """

    temperature: float = 0.07
    max_scale: float = 100.0
    released: bool = False

    def setup(self) -> None:
        """Creates the parameter of the scale, one number."""
        name = "scale" if self.released else "log_scale"
        self.parameter = self.param(name, _log_scale, self.temperature)

    def factor(self) -> Float[Array, ""]:
        """Returns the factor on the cosines."""
        return self.parameter if self.released else _bounded_exp(self.parameter, self.max_scale)

    def __call__(
        self,
        images: Float[Array, "b d"],
        texts: Float[Array, "b d"],
        text_id: Int[Array, " b"],
        valid: Bool[Array, " b"],
    ) -> Loss:
        """Returns the mean cross-entropy of both directions; see the docstring of the module.

        Args:
          images: unit vectors of the images.
          texts: unit vectors of the texts.
          text_id: equal for equal captions.
          valid: False for rows without text.

        Returns:
          The term "info_nce", summed over the batch; the weight is the number of valid rows.
        """
        factor, rows = self.factor(), _count(valid)
        pair = constrain(valid[:, None] & valid[None, :], ("batch", None))
        logits = jnp.where(pair, pairwise_logits(images, texts, factor), _NEVER)
        same = pair & (text_id[:, None] == text_id[None, :])
        # An image and its text have the same number of matches, so both directions share a target.
        target = same / jnp.maximum(jnp.sum(same, axis=1, keepdims=True), 1)
        both = sum(jnp.sum(valid * jax.nn.logsumexp(logits, axis)) for axis in (1, 0))
        total = 0.5 * both - jnp.sum(target * logits)
        hits = [_hits(jax.lax.stop_gradient(logits), same, axis) for axis in (1, 0)]
        metrics = {"image_to_text": hits[0], "text_to_image": hits[1], "scale": factor * rows}
        means = {name: Term(total, rows) for name, total in metrics.items()}
        return Loss({"info_nce": Term(total, rows)}, means)


register_axes(InfoNCE, {"scale|log_scale": ()})


class SigmoidPairs(nn.Module):
    """The pairwise sigmoid loss: binary classification of all pairs (SigLIP, arXiv 2303.15343).

    This is equation 1 of the paper.

    Attributes:
      temperature: initial divisor of the logits.
      bias: initial value added to the logits; it is negative because almost all pairs are wrong.
      max_scale: largest factor on the cosines.
      form: "ring" passes texts round the devices, and a device holds one block of logits at a time.
        "dense": a device holds its rows of the B x B logits. Values and gradients are equal.
      block: columns of logits that a device of the ring holds at a time.
    """

    temperature: float = 0.1
    bias: float = -10.0
    max_scale: float = 100.0
    form: Literal["ring", "dense"] = "ring"
    block: int = 1024

    def setup(self) -> None:
        """Creates the parameters: the log of the scale, and the bias."""
        self.log_scale = self.param("log_scale", _log_scale, self.temperature)
        self.shift = self.param("bias", lambda _: jnp.float32(self.bias))

    def factor(self) -> Float[Array, ""]:
        """Returns the factor on the cosines."""
        return _bounded_exp(self.log_scale, self.max_scale)

    def __call__(
        self,
        images: Float[Array, "b d"],
        texts: Float[Array, "b d"],
        text_id: Int[Array, " b"],
        valid: Bool[Array, " b"],
    ) -> Loss:
        """Returns the sum over all pairs of -log sigmoid(label * logit).

        Args:
          images: unit vectors of the images.
          texts: unit vectors of the texts.
          text_id: equal for equal captions.
          valid: False for rows without text.

        Returns:
          The term "sigmoid"; the weight is the number of valid rows.
        """
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
    """Returns the cosines of all image-text pairs times `factor`.

    The result is float32, and its rows are split over the mesh.
    """
    images = constrain(images.astype(jnp.float32), ("batch", None))
    texts = constrain(texts.astype(jnp.float32), (None, None))
    return constrain(factor * images @ texts.T, ("batch", None))


def _hits(logits: Float[Array, "b c"], same: Array, axis: int) -> Float[Array, ""]:
    """Returns the number of rows (axis 1) or columns (axis 0) whose highest logit is a match."""
    right = jnp.max(jnp.where(same, logits, -jnp.inf), axis)
    return jnp.sum(right >= jnp.max(logits, axis), dtype=jnp.float32)


def _count(valid: Bool[Array, " b"]) -> Float[Array, ""]:
    """Returns the number of valid rows, at least 1 because it is a divisor."""
    return jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1)


def _log_scale(_: Array, temperature: float) -> Float[Array, ""]:
    return jnp.float32(math.log(1 / temperature))


def _bounded_exp(log_scale: Float[Array, ""], limit: float) -> Float[Array, ""]:
    """Returns min(exp(log_scale), limit); beyond the limit, only gradients that reduce it pass.

    A plain minimum has no gradient beyond the limit, so the parameter would stay there forever.
    """
    return jnp.exp(_at_most(log_scale, math.log(limit)))


@jax.custom_vjp
def _at_most(x: Float[Array, ""], limit: float) -> Float[Array, ""]:
    return jnp.minimum(x, limit)


def _at_most_forward(x: Array, limit: float) -> tuple[Array, Array]:
    return jnp.minimum(x, limit), x >= limit


def _at_most_backward(beyond: Array, gradient: Array) -> tuple[Array, None]:
    # Descent goes against the gradient, so a negative gradient would increase x further.
    return jnp.where(beyond, jnp.maximum(gradient, 0), gradient), None


_at_most.defvjp(_at_most_forward, _at_most_backward)
