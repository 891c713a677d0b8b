"""Plain texts as tokens for training a language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer

from data_pipelines.errors import ConfigError, DataError
from data_pipelines.specs import ArraySpec
from data_pipelines.text.base import Tokens
from data_pipelines.text.learned import learned_fields, learned_spec
from data_pipelines.text.reports import clean_report
from data_pipelines.text.tokenizer_files import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Passage(Tokens):
    """A tokenizer of a text between a begin token and an end token.

    All tokens but the begin token enter the loss.

    Attributes:
      tokenizer: tokenizer.json, or a folder that has it.
      length: tokens per text. Longer texts are cut and have no end token; shorter ones are padded.
      vocab_size: rows of the language model's token embedding, at least the tokenizer's tokens.
      begin: the token before a text, as in the training of the model; "" for none.
      end: the token after a text.
    """

    tokenizer: str
    length: int = 512
    vocab_size: int = 32000
    begin: str = "<s>"
    end: str = "</s>"

    def __post_init__(self) -> None:
        """Raises ConfigError if `length` leaves no room for words."""
        if self.length < 3:
            raise ConfigError(
                f"length={self.length} leaves no room for words. Cure: set 3 or more."
            )

    def spec(self) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes of the arrays of one text; see `__call__`."""
        return learned_spec(self.length)

    def check(self) -> None:
        """Reads the tokenizer.

        Raises:
          DataError: the tokenizer is missing or not readable, lacks `begin` or `end`, or has more
            tokens than the model's token embedding has rows.
        """
        self._load()

    def __call__(
        self, text: str, rng: np.random.Generator | None = None
    ) -> Mapping[str, np.ndarray]:
        """Tokenises one text.

        Args:
          text: the text.
          rng: not used.

        Returns:
          token_ids: int32 (length,), zeros after the text.
          attention_mask: bool (length,), False for padding.
          spans: int32 (1, 2), first and past-the-last token of the tokens that enter the loss.

        Raises:
          DataError: the tokenizer cannot be used.
        """
        tokenizer, begin, end = self._load()
        words = tokenizer.encode(clean_report(text), add_special_tokens=False).ids
        ids = [*begin, *words, end][: self.length]
        return learned_fields(ids, [(len(begin), len(ids))], self.length)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of token ids; see `Tokens.decode`."""
        return self._load()[0].decode(list(token_ids), skip_special_tokens=True)

    def _load(self) -> tuple[Tokenizer, list[int], int]:
        tokenizer = load_tokenizer(self.tokenizer)
        names = [*filter(None, [self.begin]), self.end]
        known = tokenizer.get_vocab(with_added_tokens=True)
        if lacking := [name for name in names if name not in known]:
            problem = f"has no token {lacking[0]!r}"
            raise DataError(self.tokenizer, problem, "set begin and end to those of its model")
        if tokenizer.get_vocab_size() > self.vocab_size:
            problem = (
                f"has {tokenizer.get_vocab_size()} tokens, the token embedding has "
                f"{self.vocab_size} rows"
            )
            cure = (
                "use the tokenizer and weights of the same model, and set vocab_size to the rows "
                "of its token embedding"
            )
            raise DataError(self.tokenizer, problem, cure)
        numbers = [known[name] for name in names]
        return tokenizer, numbers[:-1], numbers[-1]
