"""What a batch holds of the text of its samples."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.captions import Caption, CaptionSource, Question, Report
from data_pipelines.datasets.records import Record
from data_pipelines.errors import ConfigError, TextError
from data_pipelines.specs import ArraySpec
from data_pipelines.text.directions import allowed


class Tokens(abc.ABC):
    """A tokenizer: frozen dataclasses implement this; they travel to worker processes."""

    @abc.abstractmethod
    def spec(self) -> Mapping[str, ArraySpec]:
        """Fields of one text."""

    @abc.abstractmethod
    def check(self) -> None:
        """Reads what it needs, so that what is missing is found before compilation.

        Raises:
          DataError: a file is missing, or of another model.
        """

    @abc.abstractmethod
    def __call__(
        self, text: str, rng: np.random.Generator | None = None
    ) -> Mapping[str, np.ndarray]:
        """The fields; of a text that is too long `rng` chooses the sentences."""

    def of(self, caption: Caption, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
        """The fields of a caption.

        Raises:
          ConfigError: it answers a question, and this tokenizer puts none.
        """
        if caption.question:
            raise ConfigError(
                f"{type(self).__name__} puts no questions. Cure: DialogueTokens, or a source of "
                "text that asks nothing."
            )
        return self(caption.text, rng)

    @abc.abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """The text that token ids stand for, without special tokens."""


@dataclasses.dataclass(frozen=True)
class Text:
    """Captions as tokens.

    Attributes:
      tokens: the tokenizer.
      source: where captions come from.
    """

    tokens: Tokens
    source: CaptionSource = Report()

    def spec(self, rows: int) -> dict[str, ArraySpec]:
        """Shapes and dtypes of the fields of a batch.

        The tokenizer's, and
          report_valid: (b,) False where there is no text; its tokens are zeros.
          text_id: (b,) hash of what the text means: equal for captions that say the same.
          allowed_flips: (b, 3) flips along D, H, W that leave the text true.
          allowed_turns: (b,) whether quarter turns of H and W do.
        """
        own = {
            "report_valid": ArraySpec((), np.dtype(np.bool_)),
            # 32 bits, as wide as JAX's integers: among 4096 captions, two that differ share a hash
            # once in 500 batches, and count as equally right there.
            "text_id": ArraySpec((), np.dtype(np.int32)),
            "allowed_flips": ArraySpec((3,), np.dtype(np.bool_)),
            "allowed_turns": ArraySpec((), np.dtype(np.bool_)),
        }
        return {
            name: ArraySpec((rows, *spec.shape), spec.dtype)
            for name, spec in {**self.tokens.spec(), **own}.items()
        }

    def fields(
        self, record: Record, caption: Caption | None, rng: np.random.Generator | None
    ) -> dict[str, np.ndarray]:
        """The fields of one sample.

        Args:
          record: what the caption is about.
          caption: None gives zeros, and no restrictions.
          rng: chooses the sentences of long texts; None takes the same ones every time.

        Raises:
          TextError: the tokenizer cannot use the text; it names the record.
          DataError: the tokenizer itself cannot be used.
        """
        if caption is None:
            fields = {name: np.zeros(s.shape, s.dtype) for name, s in self.tokens.spec().items()}
            meaning, text = 0, ""
        else:
            try:
                fields = dict(self.tokens.of(caption, rng))
            except TextError as error:
                raise TextError(record["source"], f"its text {error.problem}", error.cure) from None
            meaning, text = _hash(caption.meaning), _words(caption)
        # A question is as false of a mirrored volume as its answer.
        may = allowed(text, record["affine"] if record["affine_valid"] else None)
        return {
            **fields,
            "report_valid": np.array(caption is not None),
            "text_id": np.array(meaning, np.int32),
            "allowed_flips": np.array(may.flips),
            "allowed_turns": np.array(may.turns),
        }


def _words(caption: Caption) -> str:
    later = caption.later if isinstance(caption, Question) else ()
    return "\n".join([caption.question, caption.text, *map(_words, later)])


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big", signed=True)
