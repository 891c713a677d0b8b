"""The fields of a text that a language model reads, and of which it learns a part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.specs import ArraySpec

Span = tuple[int, int]
"""First and past-the-last token."""


def learned_spec(length: int, spans: int = 1) -> dict[str, ArraySpec]:
    """Shapes and dtypes of what `learned_fields` returns."""
    return {
        "token_ids": ArraySpec((length,), np.dtype(np.int32)),
        "attention_mask": ArraySpec((length,), np.dtype(np.bool_)),
        "spans": ArraySpec((spans, 2), np.dtype(np.int32)),
    }


def learned_fields(
    ids: Sequence[int], spans: Sequence[Span], length: int, pad: int = 0, most: int = 1
) -> dict[str, np.ndarray]:
    """One text as arrays of fixed length.

    Args:
      ids: its tokens, at most `length`.
      spans: what of them is learned, at most `most`.
      length: tokens of the arrays.
      pad: token behind the text.
      most: rows of the array of spans; those left over are empty.

    Returns:
      token_ids: int32 (length,), padded at the end.
      valid: bool (length,), False where it is padding.
      spans: int32 (most, 2), first and past-the-last tokens of what is learned.
    """
    fields = {n: np.zeros(s.shape, s.dtype) for n, s in learned_spec(length, most).items()}
    fields["token_ids"][:] = pad
    fields["token_ids"][: len(ids)] = ids
    fields["attention_mask"][: len(ids)] = True
    fields["spans"][: len(spans)] = spans
    return fields
