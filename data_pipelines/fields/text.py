"""The text about a crop, as tokens."""

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
    """The caption of the crop as tokens. `Data` has at most one, because a sample has one caption.

    A sample has the arrays of the tokenizer, and
      report_valid: False if the sample has no text; its tokens are then zeros;
      text_id: int32 hash of the meaning of the text, equal for captions of the same meaning;
      allowed_flips: bool (3,), True for flips along D, H, W after which the text is still true;
      allowed_turns: bool, True if the text is still true after quarter turns of H and W.

    Attributes:
      tokens: the tokenizer.
      source: where captions come from.
    """

    tokens: Tokens
    source: CaptionSource = Report()

    @property
    def needs_mask(self) -> bool:
        """Returns whether captions depend on the mask; see `Field.needs_mask`."""
        return self.source.needs_mask

    def spec(self, name: str, size: Size) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes; see `Field.spec`."""
        return {
            **self.tokens.spec(),
            "report_valid": ArraySpec((), np.dtype(np.bool_)),
            # 32 bits, because JAX's integers have 32. In batches of 4096 captions, two different
            # captions have the same hash in one of 500 batches, and count as the same text there.
            "text_id": ArraySpec((), np.dtype(np.int32)),
            "allowed_flips": ArraySpec((3,), np.dtype(np.bool_)),
            "allowed_turns": ArraySpec((), np.dtype(np.bool_)),
        }

    def check(self, name: str, sources: Sequence[RecordSource]) -> None:
        """Checks the tokenizer; see `Field.check`."""
        self.tokens.check()

    def __call__(self, name: str, sample: Sample) -> dict[str, np.ndarray]:
        """Returns the arrays of one sample; see `Field.__call__`.

        In training, a text that the tokenizer cannot use is left out, and a warning names it.

        Raises:
          TextError: the tokenizer cannot use the text, and this is not training. The error names
            the record.
          DataError: the tokenizer itself cannot be used.
        """
        try:
            return self.arrays(sample.record, sample.caption, sample.rng)
        except TextError as error:
            if sample.rng is None:
                raise
            # One bad text must not stop a training run that has run for days.
            _warn_once(f"{error} It is left out: its volume is used without a text.")
            return self.arrays(sample.record, None, sample.rng)

    def arrays(
        self, record: Record, caption: Caption | None, rng: np.random.Generator | None
    ) -> dict[str, np.ndarray]:
        """Returns the arrays of a caption.

        Args:
          record: the record that the caption describes.
          caption: None gives zeros and allows all flips and turns.
          rng: chooses the sentences of long texts; with None the choice is always the same.

        Raises:
          TextError: the tokenizer cannot use the text. The error names the record.
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
        # Flips can make a question false as well as its answer, so both are searched.
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
    """Logs each message once; threads that run this at the same time may log it once each."""
    log.warning(message)


def _words(caption: Caption) -> str:
    later = caption.later if isinstance(caption, Question) else ()
    return "\n".join([caption.question, caption.text, *map(_words, later)])


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big", signed=True)
