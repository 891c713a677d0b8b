"""The base class of tasks whose model answers questions about volumes."""

from __future__ import annotations

import abc
from typing import Any

from jaxtyping import Array, Bool, Float, Int

from data_pipelines.text import llm_tokenizer
from m3djax.models.conditions import NONE, Conditions
from m3djax.models.encoder import Encoder
from m3djax.models.llm.decoder import Decoder
from m3djax.params import Params
from m3djax.tasks.conditioned import ConditionedTask


class AnsweringTask(ConditionedTask):
    """A task with a language model that reads the tokens of encoded volumes.

    `generate.volumes.VolumeReader` works with all such tasks. Evaluators and `ask` use it.

    Attributes:
      vision: component that encodes volumes.
      llm: component that writes the answers.
      image_token_id: id of the placeholder that tokens of volumes replace.
    """

    vision: Encoder
    llm: Decoder
    image_token_id: int

    def token_problems(self, tokenizer: Any) -> list[str]:
        """Returns the problems of `Task.token_problems`: the placeholder must be `<im_patch>`."""
        token = tokenizer.convert_tokens_to_ids(llm_tokenizer.IMAGE)
        if token == self.image_token_id:
            return []
        return [
            f"{llm_tokenizer.IMAGE} is token {token}, and task.image_token_id={self.image_token_id}"
        ]

    @abc.abstractmethod
    def tokens_per_volume(self, size: tuple[int, ...]) -> int:
        """Returns the number of placeholders for one volume of (D, H, W) voxels.

        Raises:
          ConfigError: the encoder or the projector cannot take volumes of this size.
        """

    @abc.abstractmethod
    def encode(
        self,
        params: Params,
        images: Float[Array, "b v d h w 1"] | Float[Array, "b d h w 1"],
        conditions: Conditions = NONE,
    ) -> Float[Array, "b m c"]:
        """Returns the volumes of each sample as tokens for `llm`, one volume after the other.

        Args:
          params: all components but `llm`.
          images: in network units, as `Inputs` returns them. Without the axis V there is one volume
            per sample.
          conditions: see `ConditionedTask.conditions`.
        """

    @abc.abstractmethod
    def merge_image_features(
        self,
        embeds: Float[Array, "b n c"],
        volumes: Float[Array, "b m c"],
        token_ids: Int[Array, "b n"],
        attention_mask: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b n c"]:
        """Replaces the placeholders by the tokens of the volumes.

        Args:
          embeds: embedded tokens.
          volumes: the result of `encode`.
          token_ids: ids of the text.
          attention_mask: False for padding; None: there is no padding.

        Raises:
          ConfigError: the number of placeholders differs from the number of tokens.
        """
