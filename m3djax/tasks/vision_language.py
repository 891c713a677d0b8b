"""The task of a language model that answers about volumes, such as M3D-LaMed and E3D-GPT."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from data_pipelines.errors import ConfigError
from data_pipelines.fields.image import Image
from data_pipelines.fields.text import Text
from m3djax.contracts.task import Batch, apply
from m3djax.contracts.terms import Loss
from m3djax.mesh.sharding import constrain
from m3djax.models.conditions import NONE, Conditions, given
from m3djax.models.encoder import Encoder, VisionFeatures
from m3djax.models.llm.decoder import Decoder
from m3djax.models.patches import Size, patch_grid
from m3djax.models.projectors import Projector
from m3djax.models.vit import ViT3D
from m3djax.params import Params
from m3djax.tasks.answering import AnsweringTask
from m3djax.tasks.next_token import Reduction, next_token_loss, spans_to_labels


@dataclasses.dataclass(frozen=True)
class VisionLanguage(AnsweringTask):
    """Next-token prediction of answers about volumes.

    Volumes are encoded and projected. Their tokens replace the placeholders in the text, in order
    and at any position. M3D-LaMed (BAAI-DCAI/M3D, lamed_arch.py) always puts them after the first
    token, which gives the same result for its prompts.

    Attributes:
      vision: encoder of volumes.
      projector: maps tokens of `vision` to tokens of the language model.
      llm: the language model.
      image_token_id: id of the placeholder, such as M3D's <im_patch>.
      vision_feature_layer: layer of `vision` whose features are projected. -1 takes the output of
        `vision`. Another index, as in a Python list, takes that inner layer (of a ViT: a block,
        before the last norm).
      logits_chunk: see `next_token_loss`.
      z_loss: see `next_token_loss`.
      counted: largest number of tokens in an answer, its end token included; see `next_token_loss`.
      reduction: see `next_token_loss`.
    """

    vision: Encoder = ViT3D()
    projector: Projector = Projector()
    llm: Decoder = Decoder()
    image_token_id: int = 32000
    vision_feature_layer: int = -1
    logits_chunk: int = 128
    z_loss: float = 0.0
    counted: int = 0
    reduction: Reduction = "token"

    def __post_init__(self) -> None:
        """Raises ConfigError if the components do not fit each other."""
        if self.projector.features != self.llm.hidden_size:
            raise ConfigError(
                f"projector.features={self.projector.features} must be the width of the language "
                f"model, llm.hidden_size={self.llm.hidden_size}. "
                f"Cure: projector.features={self.llm.hidden_size}."
            )
        size = self.llm.num_tokens or self.llm.vocab_size
        if not 0 <= self.image_token_id < size:
            raise ConfigError(
                f"image_token_id={self.image_token_id} is none of the language model's {size} "
                "tokens. Cure: add it to the vocabulary (m3djax/convert/new_tokens.py)."
            )
        depth = self.vision.depth
        if not -depth <= self.vision_feature_layer < depth:
            raise ConfigError(
                f"vision_feature_layer={self.vision_feature_layer}, and the encoder has {depth} "
                f"layers. Cure: an index from {-depth} to {depth - 1}."
            )

    @property
    def stochastic(self) -> bool:
        """Returns False; see `Task.stochastic`."""
        return False

    def tokens_per_volume(self, size: tuple[int, ...]) -> int:
        """Returns the number of placeholders for one volume of (D, H, W) voxels.

        Raises:
          ConfigError: patches, or blocks of patches, do not divide the volume.
        """
        return self.projector.num_tokens(patch_grid(size, self._stride))

    @property
    def _asked(self) -> tuple[int, ...]:
        """Returns the inner layers that the encoder must return."""
        return () if self.vision_feature_layer == -1 else (self.vision_feature_layer,)

    @property
    def _stride(self) -> Size:
        """Returns the number of voxels along (D, H, W) of one token before the projector."""
        strides = [self.vision.hidden_strides[layer] for layer in self._asked]
        return strides[0] if strides else self.vision.stride

    def _chosen(self, features: VisionFeatures) -> VisionFeatures:
        """Returns the features for the projector."""
        return features.hidden[0] if self._asked else features

    def check(self, data: Any) -> None:
        """Raises ConfigError if texts do not fit the vocabulary or have no room for the volume."""
        data.field("image", Image)
        tokens, llm = data.field("text", Text).tokens, self.llm
        rows = getattr(tokens, "vocab_size", llm.vocab_size)
        if rows != llm.vocab_size:
            raise ConfigError(
                f"data.fields.text.tokens.vocab_size={rows}, and the language model's table has "
                f"{llm.vocab_size} rows (task.llm.vocab_size). Cure: the tokenizer of the "
                "language model's weights, with the same new tokens."
            )
        needed = self.tokens_per_volume(data.size)
        given = getattr(tokens, "image_tokens", needed)
        if given != needed:
            raise ConfigError(
                f"data.fields.text.tokens.image_tokens={given}, and a volume of {data.size} "
                f"becomes {needed} tokens. Cure: data.fields.text.tokens.image_tokens={needed}."
            )
        length = tokens.spec()["token_ids"].shape[-1]
        if not needed < length <= llm.max_position_embeddings:
            raise ConfigError(
                f"texts have {length} tokens, and the length must be more than the volume's "
                f"{needed} tokens and at most the model's context of "
                f"{llm.max_position_embeddings}. Cure: another data.fields.text.tokens.length."
            )

    def init(self, rng: Key[Array, ""], batch: Batch) -> Params:
        """Returns fresh parameters. Uses only the shapes of the batch."""
        keys = jax.random.split(rng, 3)
        images = jnp.zeros((1, *batch["image"].shape[-4:]))
        features, vision = self.vision.init_with_output(
            keys[0], images, hidden=self._asked, **given(self.first(batch))
        )
        projector = self.projector.init(keys[1], self._chosen(features))
        llm = self.llm.init(keys[2], jnp.zeros((1, 1), jnp.int32))
        parts = {"vision": vision, "projector": projector, "llm": llm}
        return {name: variables["params"] for name, variables in parts.items()}

    def loss(self, params: Params, batch: Batch, keys: Key[Array, " b"], *, train: bool) -> Loss:
        """Returns the negative log-likelihood of the answers; see `next_token_loss`.

        Args:
          params: one entry per component.
          batch: image (B, D, H, W, 1) in network units, or (B, V, D, H, W, 1) for prompts about V
            volumes; token_ids (B, L); attention_mask (B, L), False for padding; spans (B, S, 2),
            see `spans_to_labels`.
          keys: one key per sample; not used.
          train: not used.
        """
        ids, mask = batch["token_ids"], batch["attention_mask"]
        volumes = self.encode(params, batch["image"], **given(self.conditions(params, batch)))
        embeds = apply(self.llm, params["llm"], ids, method="embed")
        embeds = self.merge_image_features(embeds, volumes, ids, mask)
        hidden, _ = apply(self.llm, params["llm"], embeds, mask, method="encode")
        labels = spans_to_labels(ids, batch["spans"])
        return next_token_loss(
            self.llm,
            params["llm"],
            hidden,
            labels,
            logits_chunk=self.logits_chunk,
            z_loss=self.z_loss,
            counted=self.counted,
            reduction=self.reduction,
        )

    def encode(
        self,
        params: Params,
        images: Float[Array, "b v d h w 1"] | Float[Array, "b d h w 1"],
        conditions: Conditions = NONE,
    ) -> Float[Array, "b m c"]:
        """Returns the tokens of the volumes; see `AnsweringTask.encode`."""
        b, volume = len(images), images.shape[-4:]
        images = constrain(images.reshape(-1, *volume), ("batch", None, None, None, None))
        if len(images) > b:  # the volumes of a sample share its conditions
            conditions = jax.tree.map(lambda x: jnp.repeat(x, len(images) // b, 0), conditions)
        vision, more = params["vision"], given(conditions)
        features = apply(self.vision, vision, images, hidden=self._asked, **more)
        tokens = apply(self.projector, params["projector"], self._chosen(features))
        return tokens.reshape(b, -1, tokens.shape[-1]).astype(self.llm.dtype)

    def merge_image_features(
        self,
        embeds: Float[Array, "b n c"],
        volumes: Float[Array, "b m c"],
        token_ids: Int[Array, "b n"],
        attention_mask: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b n c"]:
        """Returns the embedded tokens, with the placeholders replaced by tokens of the volumes.

        Each row must have as many placeholders as tokens of volumes. Rows of padding are exempt.
        Compiled code cannot raise an error. There, a row with another number becomes NaN, so that
        the step is refused.

        Args:
          embeds: embedded tokens.
          volumes: the result of `encode`.
          token_ids: ids of the text.
          attention_mask: False for padding; None: there is no padding.

        Raises:
          ConfigError: a row has another number of placeholders. Raised only outside of jit.
        """
        here = jnp.asarray(token_ids) == self.image_token_id
        used = jnp.ones(len(here), bool)
        if attention_mask is not None:
            used = jnp.any(attention_mask, axis=1)
        expected = volumes.shape[1]
        wrong = (jnp.sum(here, axis=1) != expected) & used
        if not isinstance(wrong, jax.core.Tracer) and np.any(wrong):
            row = int(np.argmax(wrong))
            raise ConfigError(
                f"text {row} has {int(jnp.sum(here[row]))} image tokens, and its volumes become "
                f"{expected} tokens. Cure: {expected} placeholders in the text."
            )
        number = jnp.clip(jnp.cumsum(here, axis=1) - 1, 0, expected - 1)
        taken = jnp.take_along_axis(volumes, number[..., None], axis=1).astype(embeds.dtype)
        placed = jnp.where(here[..., None], taken, embeds)
        placed = jnp.where(wrong[:, None, None], jnp.nan, placed)
        return constrain(placed, ("batch", None, None))
