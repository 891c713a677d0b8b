"""The contract of a tokenizer."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.caption import Caption
from data_pipelines.errors import ConfigError
from data_pipelines.specs import ArraySpec


class Tokens(abc.ABC):
    """A tokenizer; frozen dataclasses implement this and travel to worker processes."""

    @abc.abstractmethod
    def spec(self) -> Mapping[str, ArraySpec]:
        """Returns shapes and dtypes of the arrays of one text."""

    @abc.abstractmethod
    def check(self) -> None:
        """Reads the files it needs, so that what is missing is found before compilation.

        Raises:
          DataError: a file is missing, or of another model.
        """

    @abc.abstractmethod
    def __call__(
        self, text: str, rng: np.random.Generator | None = None
    ) -> Mapping[str, np.ndarray]:
        """Returns the arrays of a text; `rng` chooses the sentences of a text that is too long."""

    def of(self, caption: Caption, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
        """Returns the arrays of a caption.

        Raises:
          ConfigError: the caption answers a question, and this tokenizer puts none.
        """
        if caption.question:
            raise ConfigError(
                f"{type(self).__name__} puts no questions. Cure: DialogueTokens, or a source of "
                "text that asks nothing."
            )
        return self(caption.text, rng)

    @abc.abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text that token ids stand for, without special tokens."""
