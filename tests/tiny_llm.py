"""A tiny language model for tests of everything around it."""

from __future__ import annotations

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from m3djax.convert import llm_config
from m3djax.convert.pretrained import Pretrained
from m3djax.models.llm.decoder import Decoder

VALUES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
}


def tokenizer() -> Any:
    """One token per byte, then <bos> and <eos>; it has no padding token."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>")


def pretrained(family: str = "llama", **changes: Any) -> Pretrained:
    """A random model with its tokenizer of 258 tokens; its table has 264 rows."""
    model, params, config = _made(family, json.dumps(changes, sort_keys=True))
    return Pretrained(model, {"llm": params}, config, tokenizer(), (257,))


@functools.cache
def _made(family: str, changes: str) -> tuple[Decoder, dict[str, Any], Any]:
    """Makes the model once for all tests, which do not change its arrays."""
    config = llm_config.make_config(family, VALUES | json.loads(changes), "tiny")
    model = llm_config.decoder(config, num_tokens=258)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    # As they are drawn, all texts would be alike.
    return model, jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim == 2 else leaf, params), config
