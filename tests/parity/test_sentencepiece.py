"""Tokenizers in GGUF files of SentencePiece's models (golden kind `sentencepiece`)."""

from __future__ import annotations

import pathlib

import pytest

from data_pipelines.text import gguf_tokenizer
from m3djax.convert.gguf_files import GgufFile
from tests.parity.goldens import Golden, golden_dirs


@pytest.mark.parametrize("folder", golden_dirs("sentencepiece"), ids=lambda path: path.name)
def test_ids_and_texts_are_sentencepieces_own(folder: pathlib.Path) -> None:
    golden, path = Golden.read(folder), folder / "model.gguf"
    tokenizer = gguf_tokenizer.build(GgufFile(path).fields, path)
    decoded = golden.config["decoded"]
    for number, text in enumerate(golden.config["texts"]):
        theirs = golden.given(f"ids/{number}").tolist()
        assert tokenizer(text)["input_ids"] == theirs, text
        assert tokenizer.decode(theirs, skip_special_tokens=True) == decoded[number]
    golden.finish()
