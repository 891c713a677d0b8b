"""Maps of names and config.json of Hugging Face's BERT and RoBERTa checkpoints, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipelines.errors import DataError
from m3djax.convert.name_map import Rule, linear, norm
from m3djax.models.bert import Bert, PostNormBlock, TextEmbeddings
from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.transformer import Transformer

WORDS = "embeddings.word_embeddings.weight"
_TYPES = ("bert", "roberta")
HEADS = {
    "bert": (
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions",
    ),
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head"),
}
"""Names of the masked-language head: transform, norm, and the prefix of bias and decoder."""


def encoder(prefix: str = "", ours: str = "text", *, pooler: bool = False) -> tuple[Rule, ...]:
    """Returns the map of BertModel and RobertaModel, which have the same names.

    Args:
      prefix: start of the published names: "", "bert.", "roberta.", "language_encoder.".
      ours: our component.
      pooler: whether our model has a pooler. If not, the pooler in the file is ignored.
    """
    layer, block = f"{prefix}encoder.layer.{{i}}", f"{ours}/transformer/block"
    tables = {"words": "word", "positions": "position", "types": "token_type"}
    return (
        *(
            Rule(
                f"{prefix}embeddings.{theirs}_embeddings.weight", f"{ours}/embeddings/{name}/table"
            )
            for name, theirs in tables.items()
        ),
        *norm(f"{prefix}embeddings.LayerNorm", f"{ours}/embeddings/norm"),
        *(
            rule
            for part in ("query", "key", "value")
            for rule in linear(f"{layer}.attention.self.{part}", f"{block}/attention/{part}")
        ),
        *linear(f"{layer}.attention.output.dense", f"{block}/attention/out"),
        *norm(f"{layer}.attention.output.LayerNorm", f"{block}/norm1"),
        *linear(f"{layer}.intermediate.dense", f"{block}/mlp/fc1"),
        *linear(f"{layer}.output.dense", f"{block}/mlp/fc2"),
        *norm(f"{layer}.output.LayerNorm", f"{block}/norm2"),
        *(linear(f"{prefix}pooler.dense", f"{ours}/pooler") if pooler else ()),
        *(() if pooler else _unused(f"{prefix}pooler.dense.weight", f"{prefix}pooler.dense.bias")),
        # Old versions store these ids; here they are computed.
        *_unused(f"{prefix}embeddings.position_ids", f"{prefix}embeddings.token_type_ids"),
    )


def masked_language_head(layout: str, ours: str = "mlm_head") -> tuple[Rule, ...]:
    """Returns the map of the masked-language head in "bert" or "roberta" checkpoints.

    The head is tied to the table of words. BERT's next-sentence head is ignored.
    """
    transform, transform_norm, top = HEADS[layout]
    return (
        *linear(transform, f"{ours}/transform"),
        *norm(transform_norm, f"{ours}/norm"),
        Rule(f"{top}.bias", f"{ours}/vocabulary_bias"),
        *_unused(f"{top}.decoder.weight", f"{top}.decoder.bias"),  # `read_bert` checks them
        *_unused("cls.seq_relationship.weight", "cls.seq_relationship.bias"),
    )


def model_of(config: Mapping[str, Any], source: object, *, pooler: bool = False) -> Bert:
    """Returns the encoder that a checkpoint's config.json describes.

    Args:
      config: content of config.json.
      source: named in errors.
      pooler: whether the encoder gets a pooler.

    Raises:
      DataError: a field is missing or has a value that the encoder does not support.
    """
    _check_config(config, source)
    roberta = config["model_type"] == "roberta"
    eps, pad = config["layer_norm_eps"], config.get("pad_token_id", 1 if roberta else 0)
    embeddings = TextEmbeddings(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        max_length=config["max_position_embeddings"] - (pad + 1 if roberta else 0),
        type_vocab_size=config["type_vocab_size"],
        pad_token_id=pad,
        positions="roberta" if roberta else "bert",
        norm_eps=eps,
    )
    block = PostNormBlock(
        Attention(config["num_attention_heads"]), Mlp(config["intermediate_size"]), norm_eps=eps
    )
    return Bert(embeddings, Transformer(config["num_hidden_layers"], block), pooler=pooler)


def config_of(model: Bert) -> dict[str, Any]:
    """Returns the config.json of an encoder; the inverse of `model_of`."""
    embeddings, block = model.embeddings, model.transformer.block
    roberta = embeddings.positions == "roberta"
    return {
        "model_type": embeddings.positions,
        "vocab_size": embeddings.vocab_size,
        "hidden_size": embeddings.hidden_size,
        "num_hidden_layers": model.transformer.num_layers,
        "num_attention_heads": block.attention.num_heads,
        "intermediate_size": block.mlp.mlp_dim,
        "max_position_embeddings": embeddings.max_length
        + (embeddings.pad_token_id + 1 if roberta else 0),
        "type_vocab_size": embeddings.type_vocab_size,
        "pad_token_id": embeddings.pad_token_id,
        "layer_norm_eps": embeddings.norm_eps,
        "hidden_act": block.mlp.hidden_act,
    }


def _unused(*names: str) -> tuple[Rule, ...]:
    return tuple(Rule(name, ()) for name in names)


def _check_config(config: Mapping[str, Any], source: object) -> None:
    done = {
        "model_type": _TYPES,
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
    }
    cure = f"take a checkpoint of model_type {' or '.join(_TYPES)} with exact GELU"
    for field, values in done.items():
        if (value := config.get(field, values[0] if field != "model_type" else None)) not in values:
            raise DataError(source, f"{field} is {value!r}, which is not supported", cure)
    for field in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
    ):  # fmt: skip
        number = float if field == "layer_norm_eps" else int
        if not isinstance(config.get(field), number):
            problem = f"{field} is {config.get(field)!r}, which is not of type {number.__name__}"
            raise DataError(source, problem, "take the config.json that came with the weights")
