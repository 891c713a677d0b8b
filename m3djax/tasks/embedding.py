"""The base class of tasks that embed volumes and texts for retrieval."""

from __future__ import annotations

import abc

from jaxtyping import Array, Bool, Float, Int

from m3djax.models.conditions import NONE, Conditions
from m3djax.params import Params
from m3djax.tasks.conditioned import ConditionedTask


class EmbeddingTask(ConditionedTask):
    """A task that maps volumes and texts to unit vectors in one space."""

    @abc.abstractmethod
    def embed_images(
        self,
        params: Params,
        images: Float[Array, "b d h w c"],
        conditions: Conditions = NONE,
    ) -> Float[Array, "b f"]:
        """Returns unit vectors of volumes, float32.

        Args:
          params: one entry per component.
          images: volumes in network units.
          conditions: see `ConditionedTask.conditions`.
        """

    @abc.abstractmethod
    def embed_texts(
        self, params: Params, token_ids: Int[Array, "b n"], mask: Bool[Array, "b n"]
    ) -> Float[Array, "b f"]:
        """Returns unit vectors of texts, float32.

        Args:
          params: one entry per component.
          token_ids: ids of the texts.
          mask: True for tokens, False for padding.
        """
