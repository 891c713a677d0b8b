"""The task of training a language model on text."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Key

from m3djax.contracts.task import Batch, Task, apply
from m3djax.contracts.terms import Loss
from m3djax.models.llm.decoder import Decoder
from m3djax.params import Params
from m3djax.tasks.next_token import Reduction, next_token_loss, spans_to_labels


@dataclasses.dataclass(frozen=True)
class Language(Task):
    """Next-token prediction inside spans of a text.

    A batch has `token_ids` (B, N), `attention_mask` (B, N), which is False for padding, and `spans`
    (B, S, 2): the first position of each span and the one past its last; see `spans_to_labels`.

    Attributes:
      llm: the language model.
      logits_chunk: see `next_token_loss`.
      z_loss: see `next_token_loss`.
      counted: see `next_token_loss`.
      reduction: see `next_token_loss`.
    """

    llm: Decoder = Decoder()
    logits_chunk: int = 128
    z_loss: float = 0.0
    counted: int = 0
    reduction: Reduction = "token"

    @property
    def stochastic(self) -> bool:
        """Returns False; see `Task.stochastic`."""
        return False

    def init(self, rng: Key[Array, ""], batch: Batch) -> Params:
        """Returns fresh parameters; see `Task.init`."""
        return {"llm": self.llm.init(rng, jnp.zeros((1, 1), jnp.int32))["params"]}

    def loss(self, params: Params, batch: Batch, keys: Key[Array, " b"], *, train: bool) -> Loss:
        """Returns the negative log-likelihood of the tokens in the spans; see `next_token_loss`."""
        llm, ids = params["llm"], batch["token_ids"]
        embeds = apply(self.llm, llm, ids, method="embed")
        hidden, _ = apply(self.llm, llm, embeds, batch["attention_mask"], method="encode")
        labels = spans_to_labels(ids, batch["spans"])
        return next_token_loss(
            self.llm,
            llm,
            hidden,
            labels,
            logits_chunk=self.logits_chunk,
            z_loss=self.z_loss,
            counted=self.counted,
            reduction=self.reduction,
        )
