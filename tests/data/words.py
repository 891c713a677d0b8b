"""A tokenizer for tests of the pipeline: a word is its length."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.caption import Caption
from data_pipelines.specs import ArraySpec
from data_pipelines.text.base import Tokens


@dataclasses.dataclass(frozen=True)
class WordLengths(Tokens):
    """Attributes:
    length: Tokens of a text.
    """

    length: int = 8

    def spec(self) -> dict[str, ArraySpec]:
        ids = ArraySpec((self.length,), np.dtype(np.int32))
        return {
            "token_ids": ids,
            "sentence_ids": ids,
            "attention_mask": ArraySpec((self.length,), np.dtype(np.bool_)),
        }

    def check(self) -> None:
        """It needs nothing."""

    def __call__(self, text: str, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        words = np.array([len(word) for word in text.split()], np.int32)
        if len(words) > self.length and rng is not None:
            words = words[np.sort(rng.permutation(len(words))[: self.length])]
        words = words[: self.length]
        tokens = np.zeros(self.length, np.int32)
        tokens[: len(words)] = words
        return {
            "token_ids": tokens,
            "sentence_ids": np.zeros_like(tokens),
            "attention_mask": np.arange(self.length) < len(words),
        }

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join("x" * int(length) for length in token_ids)


@dataclasses.dataclass(frozen=True)
class AnswerLengths(WordLengths):
    """The words of the answer, whether or not there is a question."""

    def of(self, caption: Caption, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        return self(caption.text, rng)
