"""The base class of a tokenizer."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.caption import Caption
from data_pipelines.errors import ConfigError
from data_pipelines.specs import ArraySpec


class Tokens(abc.ABC):
    """A tokenizer that turns texts into arrays.

    Subclasses are frozen dataclasses, because they are sent to worker processes.
    """

    @abc.abstractmethod
    def spec(self) -> Mapping[str, ArraySpec]:
        """Returns shapes and dtypes of the arrays of one text."""

    @abc.abstractmethod
    def check(self) -> None:
        """Reads the files of the tokenizer, so that errors appear before compilation.

        Raises:
          DataError: a file is missing, or belongs to another model.
        """

    @abc.abstractmethod
    def __call__(
        self, text: str, rng: np.random.Generator | None = None
    ) -> Mapping[str, np.ndarray]:
        """Returns the arrays of a text. If the text is too long, `rng` chooses its sentences."""

    def of(self, caption: Caption, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
        """Returns the arrays of a caption.

        Raises:
          ConfigError: the caption answers a question, but this tokenizer supports none.
        """
        if caption.question:
            raise ConfigError(
                f"{type(self).__name__} does not support questions. Cure: use DialogueTokens, or "
                "a source of text without questions."
            )
        return self(caption.text, rng)

    @abc.abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of token ids, without special tokens."""
