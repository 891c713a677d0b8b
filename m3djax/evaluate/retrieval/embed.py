"""Embeddings of volumes and of their texts, as unit vectors."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from m3djax.inputs.inputs import FieldInputs, ScaleIntensityRange
from m3djax.models.conditions import given
from m3djax.params import Params
from m3djax.tasks.embedding import EmbeddingTask

FIELDS = ("image", "scale", "offset", "token_ids", "attention_mask")
"""Fields of a batch that `embed` takes."""
_SIDE = 96  # largest side of a small slice, in pixels


# Compiled once for equal tasks, even for many calls during training.
@functools.partial(jax.jit, static_argnums=(0, 1))
def embed(
    task: EmbeddingTask, inputs: FieldInputs, params: Params, batch: Mapping[str, Array]
) -> dict[str, Array]:
    """Returns "images" and "texts" (b, f), unit vectors, and "middle", small slices (b, y, x).

    Args:
      task: the model.
      inputs: transform of stored batches into batches of the task.
      params: the parameters of the task.
      batch: image (b, d, h, w, 1), scale and offset (b,), token_ids and attention_mask (b, l), and
        the fields of the task's conditions.
    """
    images = inputs(batch)["image"]
    return {
        "images": task.embed_images(params, images, **given(task.conditions(params, batch))),
        "texts": task.embed_texts(params, batch["token_ids"], batch["attention_mask"]),
        "middle": _small_slices(inputs.window, images),
    }


def _small_slices(
    window: ScaleIntensityRange, images: Float[Array, "b d h w 1"]
) -> UInt8[Array, "b y x"]:
    """Returns small middle axial slices of windowed volumes, black to white over the window."""
    b, d, h, w, _ = images.shape
    shrink = max(h, w, _SIDE) / _SIDE
    small = (b, max(round(h / shrink), 1), max(round(w / shrink), 1))
    slices = jax.image.resize(images[:, d // 2, :, :, 0], small, "linear")
    shade = (window.inverse(slices) - window.a_min) / (window.a_max - window.a_min)
    return jnp.clip(jnp.round(255 * shade), 0, 255).astype(jnp.uint8)
