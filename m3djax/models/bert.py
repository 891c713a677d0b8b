"""BERT: the text encoder of M3D-CLIP and MG-3D, in its BERT and its RoBERTa form."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from data_pipelines.errors import ConfigError
from m3djax.mesh.parameter_axes import register_axes
from m3djax.mesh.sharding import constrain
from m3djax.models.conditions import NONE, Conditions
from m3djax.models.layers import dense, layer_norm
from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.transformer import Block, Transformer


@struct.dataclass
class TextFeatures:
    """What a text encoder returns, and all that projections, heads and losses may use.

    Attributes:
      tokens: (B, N, C) output of the last layer, special tokens and padding included.
      mask: (B, N) true where there is a token; what `tokens` holds elsewhere means nothing.
      embeddings: (B, N, C) output of the embedding layer, after its norm.
      pooled: (B, C) tanh(linear(first token)), if the encoder has a pooler.
      hidden: (L, B, N, C) output of every layer, on request; the last one is `tokens`.
    """

    tokens: Float[Array, "b n c"]
    mask: Bool[Array, "b n"]
    embeddings: Float[Array, "b n c"]
    pooled: Float[Array, "b c"] | None = None
    hidden: Float[Array, "l b n c"] | None = None

    @property
    def cls(self) -> Float[Array, "b c"]:
        """The first token of the last layer: [CLS] of BERT, <s> of RoBERTa."""
        return self.tokens[:, 0]

    @property
    def mean(self) -> Float[Array, "b c"]:
        """The mean over the tokens that are there (MiniLM's sentence embedding)."""
        mask = self.mask[..., None].astype(self.tokens.dtype)
        return (self.tokens * mask).sum(1) / jnp.maximum(mask.sum(1), 1)


class PostNormBlock(Block):
    """norm(x + attention(x)), then norm(x + mlp(x)): the order of arXiv 1706.03762.

    Attributes:
      attention: maps tokens to tokens.
      mlp: maps tokens and conditions to tokens.
      norm_eps: epsilon of both norms (BERT: 1e-12, RoBERTa: 1e-5).
    """

    norm_eps: float = 1e-12

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], conditions: Conditions = NONE
    ) -> Float[Array, "b n c"]:
        """Transforms tokens."""
        x = self._norm(x + self._attend(x, conditions), "norm1")
        x = self._norm(x + self.mlp(x, conditions), "norm2")
        return constrain(x, ("batch", None, None))


class Table(nn.Module):
    """Trained rows that are looked up by number.

    Attributes:
      rows: how many.
      features: width of a row.
    """

    rows: int
    features: int

    @nn.compact
    def __call__(self) -> Float[Array, "v c"]:
        """The rows, float32."""
        return self.param("table", nn.initializers.normal(0.02), (self.rows, self.features))


class TextEmbeddings(nn.Module):
    """Token + position + segment type, normalised: what BERT's first layer sees.

    It can be applied without the layers, by its own parameters: MG-3D compares sentences by it.

    Attributes:
      vocab_size: rows of the token table.
      hidden_size: width of a token.
      max_length: tokens per text at most.
      type_vocab_size: segment types.
      pad_token_id: the id that fills texts up.
      positions: "bert" counts from 0; "roberta" counts from pad_token_id + 1, over the tokens that
        are not padding, and its table has pad_token_id + 1 rows more.
      norm_eps: epsilon of the norm.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    max_length: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    positions: Literal["bert", "roberta"] = "bert"
    norm_eps: float = 1e-12

    @nn.compact
    def __call__(
        self,
        token_ids: Int[Array, "b n"],
        type_ids: Int[Array, "b n"] | None = None,
        *,
        dtype: str = "float32",
    ) -> Float[Array, "b n c"]:
        """Embeds; for arguments and errors see `Bert`."""
        if token_ids.shape[1] > self.max_length:
            raise ConfigError(
                f"texts of {token_ids.shape[1]} tokens do not fit max_length={self.max_length} of "
                "the text encoder. Cure: make the texts of the data as short."
            )
        numbers = jnp.arange(token_ids.shape[1])[None]
        first = 0
        if self.positions == "roberta":
            first = self.pad_token_id + 1
            real = token_ids != self.pad_token_id
            numbers = (jnp.cumsum(real, axis=1) * real) + self.pad_token_id
        if type_ids is None:
            type_ids = jnp.zeros((1, 1), jnp.int32)
        x = self._rows("words", self.vocab_size, token_ids, dtype)
        x = x + self._rows("types", self.type_vocab_size, type_ids, dtype)
        x = x + self._rows("positions", self.max_length + first, numbers, dtype)
        x = layer_norm(x, epsilon=self.norm_eps, name="norm")(x)
        return constrain(x, ("batch", None, None))

    def _rows(self, name: str, rows: int, ids: Array, dtype: str) -> Float[Array, "b n c"]:
        table = Table(rows, self.hidden_size, name=name)().astype(dtype)
        # Gathered whole before the lookup, which costs the table's bytes. Left alone, the compiler
        # sums the looked-up rows of the whole batch over the devices that share the table: more
        # than that as soon as a batch has more tokens than the vocabulary has rows.
        return jnp.take(constrain(table, (None, None)), ids, axis=0, mode="fill")


register_axes(
    TextEmbeddings,
    {
        "words/table": ("vocabulary", None),
        "(types|positions)/table": (None, None),
        "norm/(scale|bias)": (None,),
    },
)


class Bert(nn.Module):
    """BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692) as in Hugging Face's transformers.

    bert-base, RadBERT, BiomedBERT and MiniLM differ in fields only; `m3djax.convert.bert.read_bert`
    reads them from a checkpoint. Dropout is left out.

    Attributes:
      embeddings: from ids to tokens.
      transformer: the stack of blocks.
      pooler: whether there is a linear layer with tanh over the first token.
      dtype: what is computed in, here and in everything that consumes the tokens: "float32", or
        "bfloat16" on accelerators. Parameters, norms' statistics and softmax stay float32.
    """

    embeddings: TextEmbeddings = TextEmbeddings()
    transformer: Transformer = Transformer(12, PostNormBlock(Attention(12), Mlp(3072)))
    pooler: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"

    @nn.compact
    def __call__(
        self,
        token_ids: Int[Array, "b n"],
        mask: Bool[Array, "b n"] | None = None,
        type_ids: Int[Array, "b n"] | None = None,
        *,
        hidden: bool = False,
    ) -> TextFeatures:
        """Encodes texts.

        Args:
          token_ids: ids below the vocabulary's size. A compiled program cannot raise: where an id
            is beyond, the features of its text are NaN.
          mask: true where there is a token; None looks for the padding's id.
          type_ids: segment of each token; None is segment 0 everywhere.
          hidden: whether to return the output of every layer.

        Raises:
          ConfigError: the texts are longer than the encoder's longest.
        """
        mask = token_ids != self.embeddings.pad_token_id if mask is None else mask.astype(bool)
        embedded = self.embeddings(token_ids, type_ids, dtype=self.dtype)
        conditions = Conditions(mask[:, None, None])
        tokens, layers = self.transformer(embedded, conditions, hidden=hidden)
        pooled = None
        if self.pooler:
            pooled = jnp.tanh(dense(tokens.shape[-1], tokens, name="pooler")(tokens[:, 0]))
        return TextFeatures(tokens, mask, embedded, pooled, layers)


register_axes(Bert, {"pooler/kernel": (None, "embed"), "pooler/bias": (None,)})


class MaskedLanguageHead(nn.Module):
    """From tokens to words: linear, GELU, norm, and the product with a table of words.

    Attributes:
      vocab_size: words.
      norm_eps: epsilon of the norm.
    """

    vocab_size: int = 30522
    norm_eps: float = 1e-12

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "*b c"], table: Float[Array, "v c"] | None = None
    ) -> tuple[Float[Array, "*b v"], Float[Array, "*b c"]]:
        """Scores of all words (float32), and the transformed tokens that they were made of.

        Args:
          tokens: of the last layer; hand in only those that were masked if no others are needed.
          table: the encoder's `params["embeddings"]["words"]["table"]` (BERT, RoBERTa); None for a
            table of the head's own (MG-3D).
        """
        x = dense(tokens.shape[-1], tokens, name="transform")(tokens)
        x = layer_norm(x, epsilon=self.norm_eps, name="norm")(nn.gelu(x, approximate=False))
        if table is None:
            table = Table(self.vocab_size, x.shape[-1], name="decoder")()
        bias = self.param("vocabulary_bias", nn.initializers.zeros, (self.vocab_size,))
        table = constrain(table.astype(x.dtype), ("logits", None))
        scores = jnp.einsum("...c,vc->...v", x, table, preferred_element_type=jnp.float32)
        rest = (None,) * (x.ndim - 2)
        return constrain(scores + bias, ("batch", *rest, "logits")), x


register_axes(
    MaskedLanguageHead,
    {
        "transform/kernel": (None, "embed"),
        "transform/bias": (None,),
        "norm/(scale|bias)": (None,),
        "decoder/table": ("vocabulary", None),
        "vocabulary_bias": ("vocabulary",),
    },
)
