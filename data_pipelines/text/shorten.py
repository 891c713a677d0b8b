"""Which sentences of a report are kept where it is longer than the limit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def choose_sentences(counts: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
    """The first sentence, and of the others as many as fit, drawn at random: M3D's idea.

    They stay in the order of the report, and a limit is a limit; see `released_text` for what M3D
    does differently.

    Args:
      counts: tokens of each sentence; all of them together are more than `budget`.
      budget: tokens that may be kept.
      rng: the only source of randomness.

    Returns:
      True for the sentences to keep; the first one may alone exceed the budget.
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
    """M3D's shortening as published (BAAI-DCAI/M3D, `ITRDataset.truncate_text`).

    Its sentences end at every ".", decimals included, and come out in the order in which they were
    drawn; the first one does not count; every other counts two special tokens of its own, and
    equal sentences are taken once. The result may still be too long.

    Args:
      text: the report, longer than `limit` tokens.
      limit: tokens, special ones included.
      count: tokens of a text, special ones included.
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
