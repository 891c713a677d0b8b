"""The base class of tasks that reconstruct hidden patches, and their result."""

from __future__ import annotations

import abc

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from m3djax.models.conditions import NONE, Conditions
from m3djax.models.encoder import TokenEncoder
from m3djax.params import Params
from m3djax.tasks.conditioned import ConditionedTask


@struct.dataclass
class PredictedPatches:
    """The output of a masked autoencoder for a batch.

    Attributes:
      latent: (B, [1+]K, C) encoded visible tokens, class token first.
      prediction: (B, N, P) predicted voxels of each patch, in the units of `target`.
      target: (B, N, P) true voxels of each patch, normalised per patch if `norm_pix` is set.
      hidden: (B, N) 1 for hidden patches, 0 for visible ones.
    """

    latent: Float[Array, "b k c"]
    prediction: Float[Array, "b n p"]
    target: Float[Array, "b n p"]
    hidden: Float[Array, "b n"]

    @property
    def error(self) -> Float[Array, "b n"]:
        """Returns the mean squared error of each patch."""
        return jnp.mean(jnp.square(self.prediction - self.target), axis=-1)


class ReconstructingTask(ConditionedTask):
    """A task that fills in hidden patches of volumes.

    Attributes:
      vision: encoder of the visible patches; a patch is one of its tokens.
      norm_pix: whether patches are compared after normalisation to mean 0 and deviation 1.
    """

    vision: TokenEncoder
    norm_pix: bool

    @abc.abstractmethod
    def noise(self, keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b n"]:
        """Returns uniform noise per patch; the patches with the lowest values stay visible."""

    @abc.abstractmethod
    def reconstruct(
        self,
        params: Params,
        images: Float[Array, "b d h w c"],
        noise: Float[Array, "b n"],
        conditions: Conditions = NONE,
    ) -> PredictedPatches:
        """Hides patches, and predicts them from the visible ones.

        Args:
          params: one entry per component.
          images: volumes in network units.
          noise: see `noise`. It is an argument so that the caller can choose the masking.
          conditions: see `ConditionedTask.conditions`.
        """
