"""BERTScore (arXiv 1904.09675) with any BERT or RoBERTa, computed as the package bert-score does.

It has no idf weights and no rescaling. M3D reports this score with roberta-large.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float
from tokenizers import Tokenizer

from data_pipelines import fetch
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.text.tokenizer_files import load_tokenizer, pad_id
from m3djax.contracts.task import apply
from m3djax.convert.bert_files import read_bert
from m3djax.generate.generator import bucket
from m3djax.mesh import sharding
from m3djax.models.bert import Bert
from m3djax.params import Params

_LAYERS = {
    "bert-base": ("bert", 12, 9),
    "bert-large": ("bert", 24, 18),
    "roberta-base": ("roberta", 12, 10),
    "roberta-large": ("roberta", 24, 17),
}
"""Name -> kind, number of layers, best layer; by bert-score's correlation with people on WMT16."""


@dataclasses.dataclass(frozen=True, eq=False)
class BertScore:
    """Metric of texts: how well their words match in the features of a text encoder.

    Attributes:
      model: the encoder, cut after the compared layer.
      params: its parameters.
      tokenizer: its tokenizer, which truncates texts to the encoder's longest text.
      batch_size: pairs per batch.
    """

    model: Bert
    params: Params
    tokenizer: Tokenizer
    batch_size: int = 64

    @classmethod
    def read(cls, path: str, *, layer: int = 0, batch_size: int = 64) -> Self:
        """Reads an encoder with its tokenizer.

        Args:
          path: a folder in Hugging Face's layout, local or gs://; "all-MiniLM-L6-v2": the sample
            text encoder.
          layer: number of the compared layer, from 1; 0: the layer that bert-score uses, for BERT
            and RoBERTa with 12 or 24 layers.
          batch_size: pairs per batch.

        Raises:
          DataError: a file is missing or damaged.
          ConfigError: there is no such layer, or bert-score has no layer for this encoder.
        """
        folder = fetch.sample_text_encoder() if path == fetch.MINILM_NAME else epath.Path(path)
        checkpoint = read_bert(folder, pooler=False)
        model, params = first_layers(
            checkpoint.model, checkpoint.params["text"], layer or _usual_layer(checkpoint.model)
        )
        tokenizer = Tokenizer.from_str(load_tokenizer(str(folder)).to_str())
        tokenizer.encode_special_tokens = True
        tokenizer.enable_truncation(model.embeddings.max_length)
        _check_vocabulary(tokenizer, model, folder)
        return cls(model, params, tokenizer, batch_size)

    def __call__(
        self, candidates: Sequence[str], references: Sequence[str]
    ) -> Float[np.ndarray, "n 3"]:
        """Returns precision, recall and F of every pair; 0 if a text is empty.

        Args:
          candidates: the answers.
          references: the right answer for each.
        """
        mesh = sharding.make_mesh((-1, 1, 1), jax.local_devices())
        rows = -(-self.batch_size // mesh.size) * mesh.size
        encoded = [(self._encode(c), self._encode(r))
                   for c, r in zip(candidates, references, strict=True)]  # fmt: skip
        longest = np.array([max(len(ids) for ids, _ in pair) for pair in encoded])
        found = np.zeros((len(encoded), 3))
        # The default precision of an accelerator would round the cosines to three digits.
        with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
            params = jax.device_put(self.params, NamedSharding(mesh, P()))
            order = np.argsort(longest, kind="stable")
            for start in range(0, len(order), rows):
                chosen = np.resize(order[start : start + rows], rows)
                width = min(bucket(int(longest[chosen].max())), self.model.embeddings.max_length)
                batch = [self._pad([encoded[i][side] for i in chosen], width) for side in (0, 1)]
                where = sharding.batch_sharding(mesh)
                found[chosen] = match(self.model, params, *jax.device_put(batch, where))
        return found

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        """Returns token ids, and a mask with 1 for special tokens, which do not count."""
        text = text.strip()
        if self.model.embeddings.positions == "roberta" and text:
            text = " " + text  # so that the first word gets the same token as any other
        encoding = self.tokenizer.encode(text)
        return encoding.ids, encoding.special_tokens_mask

    def _pad(self, texts: list[tuple[list[int], list[int]]], width: int) -> dict[str, np.ndarray]:
        ids = np.full((len(texts), width), self.model.embeddings.pad_token_id, np.int32)
        word, there = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
        for row, (tokens, special) in enumerate(texts):
            ids[row, : len(tokens)] = tokens
            word[row, : len(tokens)] = np.array(special) == 0
            there[row, : len(tokens)] = True
        return {"ids": ids, "there": there, "word": word}


@functools.partial(jax.jit, static_argnums=0)
def match(
    model: Bert, params: Params, candidate: dict[str, Array], reference: dict[str, Array]
) -> Float[Array, "b 3"]:
    """Returns precision, recall and F; each word is matched with its most similar token.

    Args:
      model: the encoder, whose last layer is compared.
      params: its parameters.
      candidate: ids (B, N); there (B, N) True at tokens; word (B, N) True at tokens of words.
        Special tokens can be matched but do not count.
      reference: the same fields, (B, M).
    """
    said, meant = (_unit_vectors(model, params, text) for text in (candidate, reference))
    similarity = jnp.einsum("bnc,bmc->bnm", said, meant)
    precision = _mean_of_best(similarity, candidate["word"], reference["there"])
    recall = _mean_of_best(similarity.swapaxes(1, 2), reference["word"], candidate["there"])
    total = precision + recall
    f = jnp.where(total > 0, 2 * precision * recall / jnp.where(total > 0, total, 1), 0)
    return (
        jnp.stack([precision, recall, f], axis=-1)
        * (candidate["word"].any(1) & reference["word"].any(1))[:, None]
    )


def first_layers(model: Bert, params: Params, layer: int) -> tuple[Bert, Params]:
    """Cuts an encoder after one of its layers.

    Raises:
      ConfigError: there is no such layer.
    """
    layers = model.transformer.num_layers
    if not 1 <= layer <= layers:
        raise ConfigError(f"layer={layer}: this text encoder has layers 1 to {layers}.")
    transformer = dataclasses.replace(model.transformer, num_layers=layer)
    cut = jax.tree.map(lambda leaf: leaf[:layer], params["transformer"])
    shorter = dataclasses.replace(model, transformer=transformer, pooler=False)
    return shorter, {"embeddings": params["embeddings"], "transformer": cut}


def _usual_layer(model: Bert) -> int:
    for kind, layers, layer in _LAYERS.values():
        if (kind, layers) == (model.embeddings.positions, model.transformer.num_layers):
            return layer
    raise ConfigError(
        f"this text encoder with {model.transformer.num_layers} layers has no default layer; known "
        f"are {', '.join(_LAYERS)}. Cure: name the layer."
    )


def _check_vocabulary(tokenizer: Tokenizer, model: Bert, folder: epath.Path) -> None:
    words, padding = tokenizer.get_vocab_size(), pad_id(tokenizer, folder)
    rows, asked = model.embeddings.vocab_size, model.embeddings.pad_token_id
    if words > rows or padding != asked:
        raise DataError(
            folder,
            f"its tokenizer has {words} words and padding {padding}, weights {rows} and {asked}",
            "put the tokenizer there that was published with the weights",
        )


def _unit_vectors(model: Bert, params: Params, text: dict[str, Array]) -> Float[Array, "b n c"]:
    tokens = apply(model, params, text["ids"], text["there"]).tokens
    return tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True)


def _mean_of_best(
    similarity: Float[Array, "b n m"], counts: Bool[Array, "b n"], candidates: Bool[Array, "b m"]
) -> Float[Array, " b"]:
    best = jnp.max(similarity, axis=2, where=candidates[:, None], initial=-1.0)
    return jnp.sum(best * counts, axis=1) / jnp.maximum(counts.sum(1), 1)
