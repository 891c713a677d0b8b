"""Tokenizers of language models, from a folder in Hugging Face's layout or a GGUF file."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from typing import Any

from etils import epath

from data_pipelines import fetch
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.text import gguf_tokenizer

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
IMAGE, BOX_START, BOX_END, SEGMENT = "<im_patch>", "<bx_start>", "<bx_end>", "[SEG]"
SPECIAL, PLAIN = (IMAGE, BOX_START, BOX_END), (SEGMENT,)
"""M3D's new tokens in the order of their ids (LaMed/src/train/train.py of BAAI-DCAI/M3D)."""
_one_at_a_time = threading.Lock()


def read(path: epath.PathLike) -> Any:
    """Reads the transformers tokenizer of a folder; returns None if the folder has none.

    Raises:
      DataError: transformers cannot read it.
    """
    root = epath.Path(path)
    if not any((root / name).is_file() for name in _FILES):
        return None
    from transformers import AutoTokenizer  # this import takes seconds

    try:
        # Code in the folder is never run.
        return AutoTokenizer.from_pretrained(
            str(root), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises bare Exception
        cure = "download tokenizer.json and tokenizer_config.json again"
        raise DataError(root, f"its tokenizer is not readable ({error})", cure) from error


def load(name: str) -> Any:
    """Reads a language model's tokenizer and adds the tokens for volumes, boxes and masks.

    Missing tokens are added, with the ids that `m3djax.convert.new_tokens.grow` gives to their
    rows. The tokenizer is shared: do not change it.

    Args:
      name: a folder with tokenizer.json; or a GGUF file; or "SmolLM2-135M-Instruct", which is
        downloaded if it is not there.

    Raises:
      DataError: there is no tokenizer, or it cannot be read.
    """
    # If threads import transformers at the same time, some of them see it partly imported.
    with _one_at_a_time:
        return _load(name)


@functools.lru_cache(maxsize=4)  # per worker process
def _load(name: str) -> Any:
    path = fetch.sample_llm() if name == fetch.SMOLLM2_NAME else epath.Path(name)
    if path.suffix == ".gguf":
        tokenizer = gguf_tokenizer.build(_gguf_fields(path), path)
    else:
        tokenizer = read(path.parent if path.name in _FILES else path)
    if tokenizer is None:
        cure = "name a folder with tokenizer.json and tokenizer_config.json, or a .gguf file"
        raise DataError(name, "holds no tokenizer of a language model", cure)
    known = tokenizer.get_vocab()
    add(tokenizer, *([t for t in some if t not in known] for some in (SPECIAL, PLAIN)))
    return tokenizer


def add(tokenizer: Any, special: Sequence[str], plain: Sequence[str]) -> None:
    """Adds new tokens after the last id: first `special`, then `plain`.

    Args:
      tokenizer: a transformers tokenizer; it is changed.
      special: tokens that are left out of decoded text.
      plain: tokens that are kept in decoded text.

    Raises:
      ConfigError: the tokenizer already has one of the tokens.
    """
    vocabulary = tokenizer.get_vocab()
    if known := [token for token in (*special, *plain) if token in vocabulary]:
        raise ConfigError(f"the tokenizer has these tokens already: {', '.join(known)}.")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.add_tokens(list(plain))


def _gguf_fields(path: epath.Path) -> dict[str, Any]:
    import gguf

    try:
        reader = gguf.GGUFReader(os.fspath(path))
        return {
            name: field.contents()
            for name, field in reader.fields.items()
            if name.startswith("tokenizer.")
        }
    except Exception as error:  # the library raises errors of any class
        problem = f"is not a readable GGUF file ({type(error).__name__})"
        raise DataError(path, problem, "check the path, or download the file again") from error
