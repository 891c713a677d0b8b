"""What a task must offer so that its model can be asked about volumes."""

from __future__ import annotations

import abc
from typing import Any

from jaxtyping import Array, Bool, Float, Int

from data_pipelines.text import llm_tokenizer
from m3djax.contracts.task import Task
from m3djax.models.encoder import Encoder
from m3djax.models.llm.decoder import Decoder
from m3djax.params import Params


class AnsweringTask(Task):
    """A task with a language model that reads the tokens of encoded volumes.

    `generate.volumes.VolumeReader` asks every such task; evaluators and `ask` ask through it.

    Attributes:
      vision: component that encodes volumes.
      llm: component that writes the answers.
      image_token_id: id of the placeholder that a token of a volume takes the place of.
    """

    vision: Encoder
    llm: Decoder
    image_token_id: int

    def token_problems(self, tokenizer: Any) -> list[str]:
        """See `Task.token_problems`: the placeholder must be the token `<im_patch>`."""
        token = tokenizer.convert_tokens_to_ids(llm_tokenizer.IMAGE)
        if token == self.image_token_id:
            return []
        return [
            f"{llm_tokenizer.IMAGE} is token {token}, and task.image_token_id={self.image_token_id}"
        ]

    @abc.abstractmethod
    def tokens_per_volume(self, size: tuple[int, ...]) -> int:
        """Returns the number of placeholders that one volume of (D, H, W) voxels takes.

        Raises:
          ConfigError: the encoder or the projector cannot take volumes of this size.
        """

    @abc.abstractmethod
    def encode(
        self, params: Params, images: Float[Array, "b v d h w 1"] | Float[Array, "b d h w 1"]
    ) -> Float[Array, "b m c"]:
        """Returns the volumes of every sample as tokens for `llm`, one volume after the other.

        Args:
          params: all components but `llm`.
          images: in network units, as `Inputs` returns them; without V one volume per sample.
        """

    @abc.abstractmethod
    def place(
        self,
        embeds: Float[Array, "b n c"],
        volumes: Float[Array, "b m c"],
        token_ids: Int[Array, "b n"],
        valid: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b n c"]:
        """Puts the tokens of the volumes in the places of the placeholders.

        Args:
          embeds: embedded tokens.
          volumes: what `encode` returned.
          token_ids: the text.
          valid: false where it is padding; None: nowhere.

        Raises:
          ConfigError: the numbers of placeholders and of tokens differ.
        """
