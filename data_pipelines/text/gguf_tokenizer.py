"""Builds the tokenizer of a GGUF file with `tokenizers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as pre

from data_pipelines.errors import DataError

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # gguf.TokenType
_BLANK = "\u2581"

# Regular expressions of the models' own tokenizers: they split text into words before BPE merges.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def build(fields: Mapping[str, Any], source: epath.PathLike) -> Any:
    """Builds a transformers tokenizer, with its chat template, from the metadata of a GGUF file.

    Args:
      fields: `GgufFile.fields`.
      source: the file, for error messages.

    Raises:
      DataError: the kind of the tokenizer is not supported, or its metadata is incomplete.
    """
    from transformers import PreTrainedTokenizerFast

    kind = fields.get("tokenizer.ggml.model")
    if kind not in _KINDS:
        problem = f"its tokenizer is of kind {kind!r}; supported are {', '.join(_KINDS)}"
        raise DataError(source, problem, "name a folder with Hugging Face's tokenizer")
    try:
        tokens: list[str] = fields["tokenizer.ggml.tokens"]
        kinds: list[int] = fields["tokenizer.ggml.token_type"]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        tokenizer = _KINDS[kind](fields, vocabulary, source)
    except DataError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(
            source, f"its tokenizer is not readable ({error!r})", "download it again"
        ) from error
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
    # As in llama.cpp, a missing key means True for SentencePiece models, False for others.
    if fields.get("tokenizer.ggml.add_bos_token", kind == "llama") and "bos_token" in named:
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


def _byte_level(
    fields: Mapping[str, Any], vocabulary: dict[str, int], source: epath.PathLike
) -> Tokenizer:
    """Builds a byte-level BPE tokenizer, as in GPT-2."""
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"]]
    words = fields.get("tokenizer.ggml.pre", "default")
    bpe = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=words == "llama-bpe")
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = _words(words, source)
    tokenizer.decoder = decoders.ByteLevel()
    if words == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece(
    fields: Mapping[str, Any], vocabulary: dict[str, int], source: epath.PathLike
) -> Tokenizer:
    """Builds SentencePiece's BPE tokenizer, in which spaces are letters of the pieces.

    Characters that are in no piece become bytes. The file has scores instead of merges: of all
    neighbours that form a piece, those with the best score are merged first.
    """
    scores, kinds = fields["tokenizer.ggml.scores"], fields["tokenizer.ggml.token_type"]
    pairs = [
        (-scores[number], number, (piece[:cut], piece[cut:]))
        for piece, number in vocabulary.items()
        if kinds[number] not in (_CONTROL, _UNKNOWN, _BYTE)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    unknown = next(
        (piece for piece, number in vocabulary.items() if kinds[number] == _UNKNOWN), None
    )
    bpe = models.BPE(
        vocab=vocabulary,
        merges=[pair for *_, pair in sorted(pairs)],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    blank = normalizers.Replace(" ", _BLANK)
    end = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), blank])
        tokenizer.decoder = decoders.Sequence([*end, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = blank
        tokenizer.decoder = decoders.Sequence(end)
    return tokenizer


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}


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
    raise DataError(source, f"its pre-tokenizer {name!r} is not supported", cure)
