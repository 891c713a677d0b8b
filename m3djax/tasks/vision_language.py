"""A language model that sees volumes: M3D-LaMed, E3D-GPT and their kind."""

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
    """The next token of answers about volumes.

    Volumes are encoded and projected; their tokens take the places of the placeholders in the text,
    in order, wherever these are. M3D-LaMed (BAAI-DCAI/M3D, lamed_arch.py) puts them behind the
    first token without looking, which is the same for its prompts.

    Attributes:
      vision: encoder of volumes.
      projector: its tokens to the language model's.
      llm: the language model.
      image_token_id: id of the placeholder, such as M3D's <im_patch>.
      vision_feature_layer: layer of `vision` whose features are projected. -1 takes what `vision`
        returns; another index, as of a Python list, takes that inner layer (of a ViT: a block,
        before the last norm).
      logits_chunk: see `next_token_loss`.
      z_loss: see `next_token_loss`.
      counted: see `next_token_loss`: most tokens of an answer, the one that ends it included.
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
        """Raises ConfigError if parts do not fit each other."""
        if self.projector.features != self.llm.hidden_size:
            raise ConfigError(
                f"projector.features={self.projector.features} must be the width of the language "
                f"model, llm.hidden_size={self.llm.hidden_size}."
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
                "layers."
            )

    @property
    def stochastic(self) -> bool:
        """See `Task.stochastic`."""
        return False

    def tokens_per_volume(self, size: tuple[int, ...]) -> int:
        """Placeholders that one volume of (D, H, W) voxels takes.

        Raises:
          ConfigError: patches or blocks of them do not divide it.
        """
        return self.projector.num_tokens(patch_grid(size, self._stride))

    @property
    def _asked(self) -> tuple[int, ...]:
        """Inner layers that the encoder has to return."""
        return () if self.vision_feature_layer == -1 else (self.vision_feature_layer,)

    @property
    def _stride(self) -> Size:
        """Voxels along (D, H, W) of one of the tokens that are projected."""
        strides = [self.vision.hidden_strides[layer] for layer in self._asked]
        return strides[0] if strides else self.vision.stride

    def _chosen(self, features: VisionFeatures) -> VisionFeatures:
        """Returns the features that are projected."""
        return features.hidden[0] if self._asked else features

    def check(self, data: Any) -> None:
        """See `Task.check`: the text must be of this vocabulary and have room for the volume."""
        data.field("image", Image)
        tokens, llm = data.field("text", Text).tokens, self.llm
        rows = getattr(tokens, "vocab_size", llm.vocab_size)
        if rows != llm.vocab_size:
            raise ConfigError(
                f"data.fields.text.tokens.vocab_size={rows}, and the language model's table has "
                f"{llm.vocab_size} rows (task.llm.vocab_size). Cure: the tokenizer that the "
                "weights are for, with the same new tokens."
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
                f"texts have {length} tokens: more than the volume's {needed}, and no more than "
                f"the model's context of {llm.max_position_embeddings}, must they be. "
                "Cure: another data.fields.text.tokens.length."
            )

    def init(self, rng: Key[Array, ""], batch: Batch) -> Params:
        """See `Task.init`; of the batch only the size of `image` matters."""
        keys = jax.random.split(rng, 3)
        images = jnp.zeros((1, *batch["image"].shape[-4:]))
        features, vision = self.vision.init_with_output(keys[0], images, hidden=self._asked)
        projector = self.projector.init(keys[1], self._chosen(features))
        llm = self.llm.init(keys[2], jnp.zeros((1, 1), jnp.int32))
        parts = {"vision": vision, "projector": projector, "llm": llm}
        return {name: variables["params"] for name, variables in parts.items()}

    def loss(self, params: Params, batch: Batch, keys: Key[Array, " b"], *, train: bool) -> Loss:
        """Sum of the answers' negative log-likelihoods; the weight is the number of their tokens.

        Args:
          params: one entry per component.
          batch: image (B, D, H, W, 1), or (B, V, D, H, W, 1) where prompts are about V volumes,
            in network units; token_ids and attention_mask (B, L), false where a token
            is padding; spans (B, S, 2), see `spans_to_labels`.
          keys: one per sample.
          train: changes nothing.
        """
        ids, valid = batch["token_ids"], batch["attention_mask"]
        embeds = apply(self.llm, params["llm"], ids, method="embed")
        embeds = self.place(embeds, self.encode(params, batch["image"]), ids, valid)
        hidden, _ = apply(self.llm, params["llm"], embeds, valid, method="encode")
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
        self, params: Params, images: Float[Array, "b v d h w 1"] | Float[Array, "b d h w 1"]
    ) -> Float[Array, "b m c"]:
        """See `AnsweringTask.encode`."""
        b, volume = len(images), images.shape[-4:]
        images = constrain(images.reshape(-1, *volume), ("batch", None, None, None, None))
        features = apply(self.vision, params["vision"], images, hidden=self._asked)
        tokens = apply(self.projector, params["projector"], self._chosen(features))
        return tokens.reshape(b, -1, tokens.shape[-1]).astype(self.llm.dtype)

    def place(
        self,
        embeds: Float[Array, "b n c"],
        volumes: Float[Array, "b m c"],
        token_ids: Int[Array, "b n"],
        valid: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b n c"]:
        """Embedded tokens with the volumes' in the places of the placeholders.

        Every row must have as many placeholders as there are tokens of volumes, except rows that
        are all padding. Compiled code cannot raise: there a row with another number becomes NaN,
        so that the step is refused.

        Args:
          embeds: embedded tokens.
          volumes: what `encode` returned.
          token_ids: the text.
          valid: false where it is padding; None: nowhere.

        Raises:
          ConfigError: another number, if it can be seen.
        """
        here = jnp.asarray(token_ids) == self.image_token_id
        used = jnp.ones(len(here), bool) if valid is None else jnp.any(valid, axis=1)
        expected = volumes.shape[1]
        wrong = (jnp.sum(here, axis=1) != expected) & used
        if not isinstance(wrong, jax.core.Tracer) and np.any(wrong):
            row = int(np.argmax(wrong))
            raise ConfigError(
                f"text {row} has {int(jnp.sum(here[row]))} image tokens, and its volumes become "
                f"{expected}. Cure: as many placeholders as volumes, {expected} tokens in all."
            )
        number = jnp.clip(jnp.cumsum(here, axis=1) - 1, 0, expected - 1)
        taken = jnp.take_along_axis(volumes, number[..., None], axis=1).astype(embeds.dtype)
        placed = jnp.where(here[..., None], taken, embeds)
        placed = jnp.where(wrong[:, None, None], jnp.nan, placed)
        return constrain(placed, ("batch", None, None))
