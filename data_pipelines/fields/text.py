"""What is said of a crop, as tokens."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.caption import Caption, Question
from data_pipelines.captions import CaptionSource, Report
from data_pipelines.datasets.records import Record
from data_pipelines.errors import TextError
from data_pipelines.fields.base import Field, Sample
from data_pipelines.spatial import Size
from data_pipelines.specs import ArraySpec
from data_pipelines.text.base import Tokens
from data_pipelines.text.directions import allowed

if TYPE_CHECKING:
    from data_pipelines.datasets import RecordSource

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Text(Field):
    """The caption of the crop as tokens. `Data` has one at most, as a sample has one caption.

    A sample has the arrays of the tokenizer, and
      report_valid: False where there is no text; its tokens are zeros;
      text_id: int32 hash of the meaning of the text, equal for captions that say the same;
      allowed_flips: bool (3,), flips along D, H, W that leave the text true;
      allowed_turns: bool, whether quarter turns of H and W do.

    Attributes:
      tokens: the tokenizer.
      source: where captions come from.
    """

    tokens: Tokens
    source: CaptionSource = Report()

    @property
    def needs_mask(self) -> bool:
        """See `Field.needs_mask`."""
        return self.source.needs_mask

    def spec(self, name: str, size: Size) -> dict[str, ArraySpec]:
        """See `Field.spec`."""
        return {
            **self.tokens.spec(),
            "report_valid": ArraySpec((), np.dtype(np.bool_)),
            # 32 bits, as wide as JAX's integers: among 4096 captions, two that differ share a hash
            # once in 500 batches, and count as equally right there.
            "text_id": ArraySpec((), np.dtype(np.int32)),
            "allowed_flips": ArraySpec((3,), np.dtype(np.bool_)),
            "allowed_turns": ArraySpec((), np.dtype(np.bool_)),
        }

    def check(self, name: str, sources: Sequence[RecordSource]) -> None:
        """See `Field.check`."""
        self.tokens.check()

    def __call__(self, name: str, sample: Sample) -> dict[str, np.ndarray]:
        """See `Field.__call__`.

        In training a text that the tokenizer cannot use is left out, and a warning names it.

        Raises:
          TextError: the tokenizer cannot use the text, outside of training; it names the record.
          DataError: the tokenizer itself cannot be used.
        """
        try:
            return self.arrays(sample.record, sample.caption, sample.rng)
        except TextError as error:
            if sample.rng is None:
                raise
            # A single text among many must not end a training that has run for days.
            _warn_once(f"{error} It is left out: its volume is seen without a text.")
            return self.arrays(sample.record, None, sample.rng)

    def arrays(
        self, record: Record, caption: Caption | None, rng: np.random.Generator | None
    ) -> dict[str, np.ndarray]:
        """Returns the arrays of a caption.

        Args:
          record: what the caption is about.
          caption: None gives zeros, and no restrictions.
          rng: chooses the sentences of long texts; None takes the same ones every time.

        Raises:
          TextError: the tokenizer cannot use the text; it names the record.
          DataError: the tokenizer itself cannot be used.
        """
        if caption is None:
            arrays = {name: np.zeros(s.shape, s.dtype) for name, s in self.tokens.spec().items()}
            meaning, text = 0, ""
        else:
            try:
                arrays = dict(self.tokens.of(caption, rng))
            except TextError as error:
                raise TextError(record["source"], f"its text {error.problem}", error.cure) from None
            meaning, text = _hash(caption.meaning), _words(caption)
        # A question is as false of a mirrored volume as its answer.
        may = allowed(text, record["affine"] if record["affine_valid"] else None)
        return {
            **arrays,
            "report_valid": np.array(caption is not None),
            "text_id": np.array(meaning, np.int32),
            "allowed_flips": np.array(may.flips),
            "allowed_turns": np.array(may.turns),
        }


@functools.lru_cache(1 << 12)
def _warn_once(message: str) -> None:
    """Warns; threads that meet here may warn once each."""
    log.warning(message)


def _words(caption: Caption) -> str:
    later = caption.later if isinstance(caption, Question) else ()
    return "\n".join([caption.question, caption.text, *map(_words, later)])


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big", signed=True)
