"""The fields of a text that a language model reads, and of which it learns a part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.specs import ArraySpec


def learned_spec(length: int) -> dict[str, ArraySpec]:
    """Shapes and dtypes of what `learned_fields` returns."""
    return {
        "token_ids": ArraySpec((length,), np.dtype(np.int32)),
        "valid": ArraySpec((length,), np.dtype(np.bool_)),
        "spans": ArraySpec((1, 2), np.dtype(np.int32)),
    }


def learned_fields(
    ids: Sequence[int], start: int, length: int, pad: int = 0
) -> dict[str, np.ndarray]:
    """One text as arrays of fixed length.

    Args:
      ids: its tokens, at most `length`.
      start: of what is learned; it goes on to the end.
      length: tokens of the arrays.
      pad: token behind the text.

    Returns:
      token_ids: int32 (length,), padded at the end.
      valid: bool (length,), False where it is padding.
      spans: int32 (1, 2), first and past-the-last token of what is learned.
    """
    fields = {name: np.zeros(s.shape, s.dtype) for name, s in learned_spec(length).items()}
    fields["token_ids"][:] = pad
    fields["token_ids"][: len(ids)] = ids
    fields["valid"][: len(ids)] = True
    fields["spans"][0] = start, len(ids)
    return fields
