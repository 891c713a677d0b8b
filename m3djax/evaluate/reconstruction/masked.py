"""Hidden patches of crops, filled in by the model, by the mean and by the smooth fill-in."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from m3djax.evaluate.reconstruction.fill_in import harmonic
from m3djax.inputs.inputs import FieldInputs
from m3djax.models.conditions import given
from m3djax.models.patches import patch_grid, patchify, unpatchify
from m3djax.params import Params
from m3djax.tasks.reconstructing import ReconstructingTask

METHODS = ("model", "mean", "fill_in")


@struct.dataclass
class InpaintedBatch:
    """Crops with their hidden patches filled in, in network units.

    Attributes:
      volumes: "truth"; "hidden", True at hidden voxels; for each of `METHODS`, the crop with its
        hidden voxels filled in. All (B, d, h, w).
      sums: for each of `METHODS`, the sum of squared errors over the hidden voxels that count;
        "count", the number of these voxels. All (B,).
    """

    volumes: dict[str, Array]
    sums: dict[str, Float[Array, " b"]]


# Compiled once for equal tasks, even for many calls during training.
@functools.partial(jax.jit, static_argnums=(0, 1))
def fill(
    task: ReconstructingTask, inputs: FieldInputs, params: Params, batch: dict[str, Array]
) -> InpaintedBatch:
    """Fills in the hidden patches with each of `METHODS`, from the same visible voxels.

    A model of normalised patches (`norm_pix`) has not learned the mean and deviation of patches.
    Its predictions get those of the true patches.

    Args:
      task: the autoencoder.
      inputs: transform of stored batches into the inputs of the task.
      params: the parameters of the task.
      batch: image (B, d, h, w, 1), scale and offset (B,), key (B, ...) raw random keys;
        inside (B, d, h, w) False in padding, scored (B, d, h, w) True where errors count.
    """
    keys = jax.random.wrap_key_data(batch["key"])
    images = inputs(batch)["image"]
    conditions = given(task.conditions(params, batch))
    result = task.reconstruct(params, images, task.noise(keys, images.shape), **conditions)
    size = task.vision.stride
    grid = patch_grid(images.shape[1:4], size)
    prediction = result.prediction
    if task.norm_pix:
        prediction = _denormalise(prediction, patchify(images, size))
    hidden_patches = jnp.broadcast_to(result.hidden[..., None] > 0, prediction.shape)
    hidden = unpatchify(hidden_patches, grid, size)[..., 0]
    truth, known = images[..., 0], ~hidden & batch["inside"]
    guesses = {
        "model": unpatchify(prediction, grid, size)[..., 0],
        "mean": _mean(truth, known)[:, None, None, None],
        "fill_in": jax.vmap(harmonic)(truth, known, batch["inside"]),
    }
    volumes = {name: jnp.where(hidden, guess, truth) for name, guess in guesses.items()}
    counted = hidden & batch["scored"]
    sums = {
        name: jnp.sum(jnp.square(volume - truth) * counted, (1, 2, 3))
        for name, volume in volumes.items()
    }
    sums["count"] = jnp.sum(counted, (1, 2, 3), dtype=jnp.float32)
    return InpaintedBatch({"truth": truth, "hidden": hidden, **volumes}, sums)


def _mean(values: Float[Array, "b d h w"], chosen: Bool[Array, "b d h w"]) -> Float[Array, " b"]:
    return jnp.sum(values * chosen, (1, 2, 3)) / jnp.maximum(jnp.sum(chosen, (1, 2, 3)), 1)


def _denormalise(
    prediction: Float[Array, "b n p"], patches: Float[Array, "b n p"]
) -> Float[Array, "b n p"]:
    """Undoes `m3djax.tasks.mae.normalise_patches`, with the statistics of the true patches."""
    deviation = jnp.sqrt(patches.var(axis=-1, keepdims=True, ddof=1) + 1e-6)
    return prediction * deviation + patches.mean(axis=-1, keepdims=True)
