"""The arrays of a text for a language model, with the spans of tokens that enter the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.specs import ArraySpec

Span = tuple[int, int]
"""Index of the first token and of the one past the last."""


def learned_spec(length: int, spans: int = 1) -> dict[str, ArraySpec]:
    """Returns shapes and dtypes of the arrays of `learned_fields`."""
    return {
        "token_ids": ArraySpec((length,), np.dtype(np.int32)),
        "attention_mask": ArraySpec((length,), np.dtype(np.bool_)),
        "spans": ArraySpec((spans, 2), np.dtype(np.int32)),
    }


def learned_fields(
    ids: Sequence[int], spans: Sequence[Span], length: int, pad: int = 0, most: int = 1
) -> dict[str, np.ndarray]:
    """Returns one text as arrays of fixed length.

    Args:
      ids: tokens of the text, at most `length`.
      spans: spans of tokens that enter the loss, at most `most`.
      length: number of tokens in the arrays.
      pad: token id for padding.
      most: rows of the array of spans; unused rows are zero.

    Returns:
      token_ids: int32 (length,), padded at the end.
      attention_mask: bool (length,), False for padding.
      spans: int32 (most, 2), first and past-the-last token of each span.
    """
    fields = {n: np.zeros(s.shape, s.dtype) for n, s in learned_spec(length, most).items()}
    fields["token_ids"][:] = pad
    fields["token_ids"][: len(ids)] = ids
    fields["attention_mask"][: len(ids)] = True
    fields["spans"][: len(spans)] = spans
    return fields
