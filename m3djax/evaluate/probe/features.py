"""Frozen features of single patches, computed on whole crops."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from m3djax.contracts.task import apply
from m3djax.inputs.inputs import FieldInputs
from m3djax.models.encoder import Encoder
from m3djax.models.patches import patchify
from m3djax.params import Params


# Compiled once for equal encoders, even for many calls during training.
@functools.partial(jax.jit, static_argnums=(0, 1))
def encode(
    vision: Encoder, inputs: FieldInputs, params: Params, batch: Mapping[str, Array]
) -> tuple[Float[Array, "b n c"], Float[Array, "b n p"]]:
    """Returns the encoder's tokens of whole crops, and the voxels of the same patches.

    Args:
      vision: the encoder.
      inputs: transform of stored crops into the inputs of the encoder.
      params: the encoder's parameters.
      batch: image (B, d, h, w, 1), scale and offset (B,).
    """
    images = inputs(batch)["image"]
    tokens = apply(vision, params, images).tokens
    return tokens.astype(jnp.float32), patchify(images, vision.stride)


@jax.jit
def _take(
    tokens: Float[Array, "b n c"], voxels: Float[Array, "b n p"], patch: Int[Array, "b k"]
) -> dict[str, Array]:
    chosen = patch[..., None]
    return {
        "tokens": jnp.take_along_axis(tokens, chosen, axis=1),
        "voxels": jnp.take_along_axis(voxels, chosen, axis=1),
    }


def patch_features(
    task: Any, inputs: FieldInputs, params: Params, batch: Mapping[str, Array]
) -> dict[str, Array]:
    """Returns tokens (b, k, c) and voxels (b, k, p) of some patches of each crop.

    Args:
      task: a task with a component `vision`.
      inputs: transform of stored crops into the inputs of the task.
      params: the parameters of the task.
      batch: see `encode`; patch (b, k) is the number of each patch in its crop.
    """
    crops = {name: batch[name] for name in ("image", "scale", "offset")}
    tokens, voxels = encode(task.vision, inputs, params["vision"], crops)
    return _take(tokens, voxels, batch["patch"])
