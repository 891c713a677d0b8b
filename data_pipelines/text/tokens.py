"""Reports as arrays of token ids of fixed length, from only the text and a random generator."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from tokenizers import Encoding, Tokenizer

from data_pipelines.errors import ConfigError, DataError, TextError
from data_pipelines.specs import ArraySpec
from data_pipelines.text.base import Tokens
from data_pipelines.text.reports import clean_report
from data_pipelines.text.sentences import sentence_spans
from data_pipelines.text.shorten import choose_sentences, released_text
from data_pipelines.text.tokenizer_files import load_tokenizer, pad_id, rows_fit


@dataclasses.dataclass(frozen=True)
class ReportTokens(Tokens):
    """A tokenizer of reports that also gives the sentence of every token.

    Attributes:
      tokenizer: file or folder with tokenizer.json, vocab.txt, or vocab.json and merges.txt; or
        "all-MiniLM-L6-v2", BERT's 30,522 English word pieces, which is downloaded (84 MB).
      length: tokens per text, with special tokens; shorter texts are padded.
      vocab_size: rows of the text encoder's token embedding; the tokenizer must fit them.
      shorten: the part of a longer report to keep. "sentences": the first sentence and a random
        choice of the others, in their order; without a generator the choice is always the same.
        "released": the released method of M3D, see `released_text`. "head": the first tokens.
    """

    tokenizer: str
    length: int = 128
    vocab_size: int = 30522
    shorten: Literal["sentences", "released", "head"] = "sentences"

    def __post_init__(self) -> None:
        if self.length < 4:
            raise ConfigError(
                f"length={self.length} leaves no room for words. Cure: set 4 or more."
            )

    def spec(self) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes of the arrays of one text; see `__call__`."""
        numbers = ArraySpec((self.length,), np.dtype(np.int32))
        return {
            "token_ids": numbers,
            "sentence_ids": numbers,
            "attention_mask": ArraySpec((self.length,), np.dtype(np.bool_)),
        }

    def check(self) -> None:
        """Reads the tokenizer, so that errors appear before compilation.

        Raises:
          DataError: the tokenizer is missing, not readable, or made for another vocabulary.
        """
        self._load()

    def __call__(
        self, text: str, rng: np.random.Generator | None = None
    ) -> Mapping[str, np.ndarray]:
        """Tokenises one report.

        Args:
          text: the report.
          rng: chooses the sentences of long reports; with None the choice is always the same.

        Returns:
          token_ids: int32 (length,), with special tokens, padded at the end.
          sentence_ids: int32 (length,), 1 for tokens of the first sentence that is kept, 2 for
            tokens of the next one, and so on; 0 for special tokens and padding.
          attention_mask: bool (length,), True for tokens, also special ones, and False for padding.

        Raises:
          TextError: the text has no words.
          DataError: the tokenizer cannot be used.
        """
        text = clean_report(text)
        tokenizer, pad = self._load()
        encoding = tokenizer.encode(text)
        if len(encoding.ids) > self.length and self.shorten == "released":
            rng_or_fixed = rng or _fixed(text)
            text = released_text(
                text, self.length, lambda s: len(tokenizer.encode(s)), rng_or_fixed
            )
            encoding = tokenizer.encode(text)
        ids, sentences = np.array(encoding.ids), _sentences(text, encoding)
        if not sentences.any():
            raise TextError("report", "has no word that the tokenizer knows", "check its language")
        keep = self._keep(text, sentences, rng)
        # Renumbered without gaps for sentences that were left out; 0 stays 0.
        numbers = np.unique(np.append(0, sentences[keep]), return_inverse=True)[1][1:]
        count = int(keep.sum())
        fields = {name: np.zeros(s.shape, s.dtype) for name, s in self.spec().items()}
        fields["token_ids"][:] = pad
        fields["token_ids"][:count] = ids[keep]
        fields["sentence_ids"][:count] = numbers
        fields["attention_mask"][:count] = True
        return fields

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of token ids; see `Tokens.decode`."""
        return self._load()[0].decode(list(token_ids), skip_special_tokens=True)

    def _keep(
        self, text: str, sentences: np.ndarray, rng: np.random.Generator | None
    ) -> np.ndarray:
        """Returns True for tokens to keep: special tokens, and as many others as fit."""
        words = sentences > 0
        budget = self.length - int((~words).sum())
        if words.sum() <= budget:
            return np.ones_like(words)
        if self.shorten == "sentences":
            counts = np.bincount(sentences)[1:]
            chosen = choose_sentences(counts, budget, rng or _fixed(text))
            words &= np.append(False, chosen)[sentences]
        return (sentences == 0) | (words & (np.cumsum(words) <= budget))

    def _load(self) -> tuple[Tokenizer, int]:
        tokenizer = load_tokenizer(self.tokenizer)
        size = tokenizer.get_vocab_size()
        if not rows_fit(size, self.vocab_size):
            raise DataError(
                self.tokenizer,
                f"has {size} tokens, but the text encoder's token embedding has "
                f"{self.vocab_size} rows",
                "use the tokenizer and weights of the same model, and set vocab_size to the rows "
                "of its token embedding",
            )
        return tokenizer, pad_id(tokenizer, self.tokenizer)


def _fixed(text: str) -> np.random.Generator:
    """Returns a random generator with a seed from the text alone."""
    return np.random.default_rng(zlib.crc32(text.encode()))


def _sentences(text: str, encoding: Encoding) -> np.ndarray:
    """Returns the sentence number of each token, ascending from 1; 0 for special tokens."""
    starts = [start for start, _ in sentence_spans(text)]
    # By a token's last character: byte-level tokens begin with the space before the word.
    last = np.array([max(end - 1, start) for start, end in encoding.offsets], int)
    numbers = np.maximum(np.searchsorted(starts, last, side="right"), 1)
    numbers[np.array(encoding.special_tokens_mask, bool)] = 0
    # Renumbered without gaps, because a sentence may have no tokens.
    return np.unique(np.append(0, numbers), return_inverse=True)[1][1:]
