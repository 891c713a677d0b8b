"""Chooses the sentences of a report that is longer than the limit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def choose_sentences(counts: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
    """Chooses the first sentence and as many random others as fit, similar to M3D.

    The sentences keep the order of the report and do not exceed the limit. See `released_text` for
    the differences to M3D.

    Args:
      counts: tokens of each sentence; their sum is more than `budget`.
      budget: maximum number of tokens to keep.
      rng: the only source of randomness.

    Returns:
      True for the sentences to keep. The first one is kept even if it exceeds the budget.
    """
    keep = np.zeros(len(counts), bool)
    keep[0] = True
    room = budget - counts[0]
    for sentence in 1 + rng.permutation(len(counts) - 1):
        if counts[sentence] <= room:
            keep[sentence] = True
            room -= counts[sentence]
    return keep


def released_text(
    text: str, limit: int, count: Callable[[str], int], rng: np.random.Generator
) -> str:
    """Shortens a report as M3D does (BAAI-DCAI/M3D, `ITRDataset.truncate_text`).

    Sentences end at every ".", also in decimals, and come in the order of the random choice. The
    first sentence does not count towards the limit. Every other sentence counts with two special
    tokens of its own. Equal sentences are taken once. The result may still be too long.

    Args:
      text: the report, longer than `limit` tokens.
      limit: maximum number of tokens, with special tokens.
      count: returns the number of tokens of a text, with special tokens.
      rng: the only source of randomness.
    """
    first, *others = text.split(".")
    chosen, total = [first], 0
    while total <= limit and others:
        sentence = others[rng.integers(len(others))]
        if total + (tokens := count(sentence)) <= limit and sentence not in chosen:
            chosen.append(sentence)
            total += tokens
        else:
            others.remove(sentence)
    return ".".join(chosen)
