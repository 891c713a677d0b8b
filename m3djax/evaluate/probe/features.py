"""Frozen features of single patches, out of whole crops."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from m3djax.augment import Intensity
from m3djax.evaluate.probe.organs import LabelledPatches
from m3djax.evaluate.tiles import batches
from m3djax.models.encoder import Encoder
from m3djax.models.patches import patchify
from m3djax.params import Params
from m3djax.tasks.base import apply


# Compiled once for equal encoders, also when it is called again and again during training.
@functools.partial(jax.jit, static_argnums=(0, 1))
def encode(
    vision: Encoder, intensity: Intensity, params: Params, batch: dict[str, Array]
) -> tuple[Float[Array, "b n c"], Float[Array, "b n p"]]:
    """The encoder's tokens of whole crops, and the windowed voxels of the same patches.

    Args:
      vision: the encoder.
      intensity: its window.
      params: the encoder's parameters.
      batch: image (B, d, h, w, 1), scale and offset (B,).
    """
    unused = jax.random.split(jax.random.key(0), len(batch["image"]))  # for augmentation only
    images = intensity(batch, unused, train=False)
    tokens = apply(vision, params, images).tokens
    return tokens.astype(jnp.float32), patchify(images, vision.stride)


def patch_features(
    task: Any, params: Params, patches: LabelledPatches, batch_size: int
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n p"]]:
    """Tokens and voxels of labelled patches; only the crops that hold one are encoded.

    Args:
      task: with a component `vision`, and `intensity`.
      params: its parameters.
      patches: which ones.
      batch_size: crops that are encoded at once.
    """
    crops, where = np.unique(patches.crop, return_inverse=True)
    rows = {"image": patches.tiles.images[crops, ..., None]}
    for name in ("scale", "offset"):
        rows[name] = np.full(len(crops), patches.record[name], np.float32)
    parts = []
    for batch, valid in batches(rows, batch_size):
        encoded = encode(task.vision, task.intensity, params["vision"], batch)
        parts.append([np.asarray(part)[:valid] for part in encoded])
    tokens, voxels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return tokens[where, patches.row], voxels[where, patches.row]
