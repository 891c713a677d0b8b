"""The tokenizer inside a GGUF file, built with `tokenizers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as pre

from data_pipelines.errors import DataError

_CONTROL, _USER_DEFINED = 3, 4

# How text falls into words before pairs are merged: patterns of the models' own tokenizers.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def build(fields: Mapping[str, Any], source: epath.PathLike) -> Any:
    """A transformers tokenizer from a GGUF file's metadata, its chat template included.

    Args:
      fields: `GgufFile.fields`.
      source: the file, for messages.

    Raises:
      DataError: the tokenizer is of a kind that is not supported, or incomplete.
    """
    from transformers import PreTrainedTokenizerFast

    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        problem = f"its tokenizer is of kind {kind!r}, only byte-level BPE (gpt2) is supported"
        raise DataError(source, problem, "name a folder with Hugging Face's tokenizer")
    try:
        tokens: list[str] = fields["tokenizer.ggml.tokens"]
        merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"]]
        kinds: list[int] = fields["tokenizer.ggml.token_type"]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        words = fields.get("tokenizer.ggml.pre", "default")
        bpe = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=words == "llama-bpe")
        tokenizer = Tokenizer(bpe)
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(source, f"no readable tokenizer ({error!r})", "fetch it again") from error
    tokenizer.pre_tokenizer = _words(words, source)
    tokenizer.decoder = decoders.ByteLevel()
    if words == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    named = {
        name: tokens[number]
        for name, key in _NAMED.items()
        if (number := fields.get(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    if fields.get("tokenizer.ggml.add_bos_token") and "bos_token" in named:
        bos = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **named,
    )


_NAMED = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


def _words(name: str, source: epath.PathLike) -> pre.PreTokenizer:
    match name:
        case "default" | "gpt-2":
            return pre.ByteLevel(add_prefix_space=False)
        case "smollm":
            digits = pre.Digits(individual_digits=True)
            return pre.Sequence([digits, pre.ByteLevel(add_prefix_space=False)])
        case "llama-bpe" | "qwen2":
            pattern = Regex(_LLAMA3 if name == "llama-bpe" else _QWEN2)
            split = pre.Split(pattern, behavior="isolated")
            return pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    cure = "name a folder with Hugging Face's tokenizer"
    raise DataError(source, f"its words are split by {name!r}, which is not known", cure)
