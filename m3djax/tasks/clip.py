"""Contrastive pretraining of a volume and a text tower: M3D-CLIP, as released and corrected."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from data_pipelines.errors import ConfigError
from data_pipelines.fields.image import Image
from data_pipelines.fields.text import Text
from m3djax.contracts.task import Batch, apply
from m3djax.contracts.terms import Loss
from m3djax.losses.contrastive import InfoNCE, SigmoidPairs
from m3djax.models.bert import Bert
from m3djax.models.conditions import NONE, Conditions, given
from m3djax.models.embedding_head import EmbeddingHead
from m3djax.models.encoder import Encoder
from m3djax.models.vit import ViT3D
from m3djax.params import Params
from m3djax.tasks.embedding import EmbeddingTask


@dataclasses.dataclass(frozen=True)
class Clip(EmbeddingTask):
    """Contrastive pretraining: matching volumes and reports get similar vectors (arXiv 2103.00020).

    The tokens of each tower become one unit vector. The objective compares all images of the global
    batch with all of its texts. M3D-CLIP (BAAI-DCAI/M3D, CLIP.py) is `InfoNCE(released=True)` with
    pooling "cls" in both heads; see configs/m3d/clip_released.py.

    Attributes:
      vision: encoder of volumes; later stages reuse it.
      text: encoder of reports.
      vision_head: pools and projects the features of `vision`.
      text_head: pools and projects the features of `text`.
      objective: contrastive loss.
    """

    vision: Encoder = ViT3D()
    text: Bert = Bert()
    vision_head: EmbeddingHead = EmbeddingHead(pooling="mean")
    text_head: EmbeddingHead = EmbeddingHead()
    objective: InfoNCE | SigmoidPairs = InfoNCE()

    def __post_init__(self) -> None:
        if self.vision_head.features != self.text_head.features:
            raise ConfigError(
                f"vision_head.features={self.vision_head.features} and "
                f"text_head.features={self.text_head.features} must be equal: both towers share "
                "one space. Cure: set the same number in both heads."
            )

    @property
    def no_accumulation(self) -> str:
        """Returns the reason of `Task.no_accumulation`: a part of a batch has fewer negatives."""
        return (
            "Clip compares the samples of a batch with each other, and a part of the batch has "
            "another loss"
        )

    @property
    def stochastic(self) -> bool:
        """Returns False; see `Task.stochastic`."""
        return False

    def check(self, data: Any) -> None:
        """Raises ConfigError if texts do not fit the text tower's vocabulary and length."""
        data.field("image", Image)
        tokens, table = data.field("text", Text).tokens, self.text.embeddings
        rows = getattr(tokens, "vocab_size", table.vocab_size)
        if rows != table.vocab_size:
            raise ConfigError(
                f"data.fields.text.tokens.vocab_size={rows}, and the text tower's table has "
                f"{table.vocab_size} rows (task.text.embeddings.vocab_size). Cure: use the "
                "tokenizer of the model whose weights the tower has."
            )
        length = tokens.spec()["token_ids"].shape[-1]
        if length > table.max_length:
            raise ConfigError(
                f"texts have {length} tokens, and the text tower takes {table.max_length}. "
                "Cure: a smaller data.fields.text.tokens.length."
            )

    def init(self, rng: Key[Array, ""], batch: Batch) -> Params:
        """Returns fresh parameters. Uses only the shapes of the batch."""
        keys = jax.random.split(rng, 5)
        images = jnp.zeros((1, *batch["image"].shape[1:]))
        seen, vision = self.vision.init_with_output(keys[0], images, **given(self.first(batch)))
        read, text = self.text.init_with_output(keys[1], jnp.zeros((1, 2), jnp.int32))
        vision_head = self.vision_head.init(keys[2], seen.tokens, seen.cls)
        text_head = self.text_head.init(keys[3], read.tokens, read.cls)
        objective = self.objective.init(keys[4], method="factor")
        parts = {"vision": vision, "text": text, "vision_head": vision_head}
        parts |= {"text_head": text_head, "objective": objective}
        return {name: variables["params"] for name, variables in parts.items()}

    def loss(self, params: Params, batch: Batch, keys: Key[Array, " b"], *, train: bool) -> Loss:
        """Returns the loss of `objective`. Its weight is the number of rows with a text.

        Args:
          params: one entry per component.
          batch: image (B, D, H, W, 1) in network units; token_ids and attention_mask (B, L);
            text_id (B,), equal for equal captions; report_valid (B,), if some rows have no text.
          keys: one key per sample; not used.
          train: not used.
        """
        images = batch["image"]
        valid = batch.get("report_valid", jnp.ones(len(images), bool))
        return apply(
            self.objective,
            params["objective"],
            self.embed_images(params, images, **given(self.conditions(params, batch))),
            self.embed_texts(params, batch["token_ids"], batch["attention_mask"]),
            batch["text_id"],
            valid,
        )

    def embed_images(
        self,
        params: Params,
        images: Float[Array, "b d h w c"],
        conditions: Conditions = NONE,
    ) -> Float[Array, "b f"]:
        """Returns unit vectors of volumes in network units, float32."""
        features = apply(self.vision, params["vision"], images, **given(conditions))
        return apply(self.vision_head, params["vision_head"], features.tokens, features.cls)

    def embed_texts(
        self, params: Params, token_ids: Int[Array, "b n"], mask: Bool[Array, "b n"]
    ) -> Float[Array, "b f"]:
        """Returns unit vectors of texts, float32. `mask` is True for tokens, False for padding."""
        features = apply(self.text, params["text"], token_ids, mask)
        head = params["text_head"]
        return apply(self.text_head, head, features.tokens, features.cls, features.mask)
