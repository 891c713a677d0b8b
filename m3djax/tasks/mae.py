"""Masked autoencoding of volumes: the visual foundation of E3D-GPT."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from data_pipelines.errors import ConfigError
from m3djax.contracts.task import Batch, apply
from m3djax.contracts.terms import Loss, Term
from m3djax.models.conditions import NONE, Conditions, given
from m3djax.models.encoder import TokenEncoder
from m3djax.models.mae_decoder import MAEDecoder
from m3djax.models.patches import patchify
from m3djax.models.vit import ViT3D
from m3djax.params import Params
from m3djax.tasks.reconstructing import PredictedPatches, ReconstructingTask


@dataclasses.dataclass(frozen=True)
class MAE(ReconstructingTask):
    """Masked autoencoder (arXiv 2111.06377) in 3D.

    The encoder sees only the visible patches. A light decoder predicts the voxels of the hidden
    patches. The loss is the mean squared error of the voxels, averaged over the hidden patches.

    Attributes:
      vision: the encoder; later stages reuse it.
      mae_decoder: the decoder; later stages drop it.
      mask_ratio: share of hidden patches.
      norm_pix: whether to normalise each patch to mean 0 and deviation 1 before the comparison.
    """

    vision: TokenEncoder = ViT3D()
    mae_decoder: MAEDecoder = MAEDecoder()
    mask_ratio: float = 0.75
    norm_pix: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.vision, TokenEncoder):
            raise ConfigError(
                f"vision={type(self.vision).__name__} cannot leave out patches, and a masked "
                "autoencoder needs that. Cure: ViT3D, or another TokenEncoder."
            )
        if not 0 < self.mask_ratio < 1:
            raise ConfigError(f"mask_ratio={self.mask_ratio} must lie between 0 and 1.")

    def init(self, rng: Key[Array, ""], batch: Batch) -> Params:
        """Returns fresh parameters; see `Task.init`. `batch["image"]` is (B, D, H, W, 1)."""
        vision_key, decoder_key = jax.random.split(rng)
        images = jnp.zeros((1, *batch["image"].shape[1:]))
        patches = patchify(images, self.vision.stride)
        restore = jnp.arange(patches.shape[1])[None]
        more = given(self.first(batch))
        features, vision = self.vision.init_with_output(
            vision_key, images, restore[:, :1], method="encode_visible", **more
        )
        decoder = self.mae_decoder.init(decoder_key, features, restore, patches.shape[-1], **more)
        return {"vision": vision["params"], "mae_decoder": decoder["params"]}

    def loss(self, params: Params, batch: Batch, keys: Key[Array, " b"], *, train: bool) -> Loss:
        """Returns the sum of the errors of the hidden patches, with their number as weight."""
        images, noise_keys = batch["image"], jax.vmap(jax.random.split)(keys)[:, 1]
        noise = self.noise(noise_keys, images.shape)
        conditions = given(self.conditions(params, batch))
        result = self.reconstruct(params, images, noise, **conditions)
        error = Term(jnp.sum(result.error * result.hidden), jnp.sum(result.hidden))
        return Loss({"reconstruction": error})

    def noise(self, keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b n"]:
        """Returns uniform noise per patch. The patches with the lowest values stay visible."""
        grid = self.vision.grid(shape[1:4])
        return jax.vmap(lambda key: jax.random.uniform(key, (math.prod(grid),)))(keys)

    def reconstruct(
        self,
        params: Params,
        images: Float[Array, "b d h w c"],
        noise: Float[Array, "b n"],
        conditions: Conditions = NONE,
    ) -> PredictedPatches:
        """Hides patches, encodes the visible ones and predicts all.

        Args:
          params: components `vision` and `mae_decoder`.
          images: volumes in network units.
          noise: see `noise`. It is an argument so that the caller can choose the masking.
          conditions: further inputs of the blocks of both components.

        Raises:
          ConfigError: `mask_ratio` leaves no patch visible.
        """
        patches = patchify(images, self.vision.stride)
        _, n, p = patches.shape
        visible = int(n * (1 - self.mask_ratio))
        if visible < 1:
            raise ConfigError(
                f"mask_ratio={self.mask_ratio} leaves none of {n} patches visible. "
                "Cure: larger volumes, smaller patches or a lower ratio."
            )
        order = jnp.argsort(noise, axis=1)
        restore = jnp.argsort(order, axis=1)
        keep = order[:, :visible]
        more = given(conditions)
        vision, decoder = params["vision"], params["mae_decoder"]
        features = apply(self.vision, vision, images, keep, method="encode_visible", **more)
        prediction = apply(self.mae_decoder, decoder, features, restore, p, **more)
        latent = features.tokens
        if features.cls is not None:
            latent = jnp.concatenate([features.cls[:, None], latent], axis=1)
        hidden = (restore >= visible).astype(jnp.float32)
        target = normalise_patches(patches) if self.norm_pix else patches
        return PredictedPatches(latent, prediction.astype(jnp.float32), target, hidden)


def normalise_patches(patches: Float[Array, "b n p"]) -> Float[Array, "b n p"]:
    """Normalises each patch to mean 0 and (unbiased) deviation 1, as in the MAE paper's code."""
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return (patches - mean) * jax.lax.rsqrt(variance + 1e-6)
