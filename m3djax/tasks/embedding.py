"""What a task must offer so that retrieval can compare volumes and texts."""

from __future__ import annotations

import abc

from jaxtyping import Array, Bool, Float, Int

from m3djax.contracts.task import Task
from m3djax.params import Params


class EmbeddingTask(Task):
    """A task that puts volumes and texts into one space, as unit vectors."""

    @abc.abstractmethod
    def embed_images(
        self, params: Params, images: Float[Array, "b d h w c"]
    ) -> Float[Array, "b f"]:
        """Returns unit vectors of volumes, float32.

        Args:
          params: one entry per component.
          images: in the network's units.
        """

    @abc.abstractmethod
    def embed_texts(
        self, params: Params, token_ids: Int[Array, "b n"], mask: Bool[Array, "b n"]
    ) -> Float[Array, "b f"]:
        """Returns unit vectors of texts, float32.

        Args:
          params: one entry per component.
          token_ids: the texts.
          mask: True where there is a token.
        """
