"""BERT and RoBERTa: the text encoders of M3D-CLIP and MG-3D."""

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
    """The features of texts: the output of a text encoder, for projections, heads and losses.

    Attributes:
      tokens: (B, N, C) output of the last layer, special tokens and padding included.
      mask: (B, N) True for tokens, False for padding. Features of padding have no meaning.
      embeddings: (B, N, C) output of the embedding layer, after its norm.
      pooled: (B, C) tanh(linear(first token)), if the encoder has a pooler.
      hidden: (L, B, N, C) output of each layer, on request; the last one is `tokens`.
    """

    tokens: Float[Array, "b n c"]
    mask: Bool[Array, "b n"]
    embeddings: Float[Array, "b n c"]
    pooled: Float[Array, "b c"] | None = None
    hidden: Float[Array, "l b n c"] | None = None

    @property
    def cls(self) -> Float[Array, "b c"]:
        """Returns the first token of the last layer: [CLS] of BERT, <s> of RoBERTa."""
        return self.tokens[:, 0]

    @property
    def mean(self) -> Float[Array, "b c"]:
        """Returns the mean over the tokens, without padding (MiniLM's sentence embedding)."""
        mask = self.mask[..., None].astype(self.tokens.dtype)
        return (self.tokens * mask).sum(1) / jnp.maximum(mask.sum(1), 1)


class PostNormBlock(Block):
    """A post-norm block: norm(x + attention(x)), then norm(x + mlp(x)) (arXiv 1706.03762).

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


class EmbeddingTable(nn.Module):
    """An embedding table: one trained row per number.

    Attributes:
      rows: number of rows.
      features: width of a row.
    """

    rows: int
    features: int

    @nn.compact
    def __call__(self) -> Float[Array, "v c"]:
        """Returns the rows, float32."""
        return self.param("table", nn.initializers.normal(0.02), (self.rows, self.features))


class TextEmbeddings(nn.Module):
    """The embedding layer of BERT: the normalised sum of token, position and segment embeddings.

    It can be applied alone with its own parameters. MG-3D compares sentences by its output.

    Attributes:
      vocab_size: rows of the token table.
      hidden_size: width of a token.
      max_length: largest number of tokens per text.
      type_vocab_size: number of segment types.
      pad_token_id: id of the padding token.
      positions: numbers of the positions. "bert" counts all tokens from 0. "roberta" counts the
        tokens without padding from pad_token_id + 1, and its table has pad_token_id + 1 more rows.
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
        """Embeds tokens. For arguments and errors see `Bert`."""
        if token_ids.shape[1] > self.max_length:
            raise ConfigError(
                f"texts of {token_ids.shape[1]} tokens do not fit max_length={self.max_length} of "
                f"the text encoder. Cure: texts of at most {self.max_length} tokens."
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
        table = EmbeddingTable(rows, self.hidden_size, name=name)().astype(dtype)
        # The table is gathered whole before the lookup, which moves the bytes of the table. By
        # default the compiler sums the looked-up rows of the whole batch over the devices that
        # share the table. That moves more if a batch has more tokens than the table has rows.
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

    bert-base, RadBERT, BiomedBERT and MiniLM differ only in the fields. A checkpoint's fields are
    read by `m3djax.convert.bert_files.read_bert`. There is no dropout.

    Attributes:
      embeddings: the embedding layer.
      transformer: the stack of blocks.
      pooler: whether there is a linear layer with tanh over the first token.
      dtype: dtype of the computation, here and in all modules that use the tokens: "float32", or
        "bfloat16" on accelerators. Parameters, norm statistics and softmax stay float32.
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
          token_ids: ids below the size of the vocabulary. A compiled program cannot raise an error,
            so a larger id makes the features of its text NaN.
          mask: True for tokens, False for padding; None: tokens with `pad_token_id` are padding.
          type_ids: segment of each token; None: segment 0 everywhere.
          hidden: whether to return the output of each layer.

        Raises:
          ConfigError: the texts have more than `max_length` tokens.
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
    """The head of masked language models: linear, GELU, norm, product with the token table.

    Attributes:
      vocab_size: size of the vocabulary.
      norm_eps: epsilon of the norm.
    """

    vocab_size: int = 30522
    norm_eps: float = 1e-12

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "*b c"], table: Float[Array, "v c"] | None = None
    ) -> tuple[Float[Array, "*b v"], Float[Array, "*b c"]]:
        """Returns the scores of the vocabulary (float32), and the tokens after the norm.

        Args:
          tokens: tokens of the last layer. Pass only the masked tokens if the others are not
            needed.
          table: the encoder's `params["embeddings"]["words"]["table"]` (BERT, RoBERTa). None: the
            head has its own table (MG-3D).
        """
        x = dense(tokens.shape[-1], tokens, name="transform")(tokens)
        x = layer_norm(x, epsilon=self.norm_eps, name="norm")(nn.gelu(x, approximate=False))
        if table is None:
            table = EmbeddingTable(self.vocab_size, x.shape[-1], name="decoder")()
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
