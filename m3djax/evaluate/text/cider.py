"""CIDEr as COCO's caption challenge computes it (arXiv 1411.5726; pycocoevalcap, "CIDEr-D").

Rare n-grams have larger weights. Their rarity is counted in all references of the corpus. So values
of different corpora cannot be compared, and a corpus of one text has only 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from m3djax.evaluate.text.coco import ngrams, tokens

_ORDERS = (1, 2, 3, 4)
_SIGMA = 6.0  # width of the length penalty, in words
_Counts = Counter[tuple[str, ...]]


def cider(candidates: Sequence[str], references: Sequence[str]) -> list[float]:
    """Returns CIDEr of every text, 0 to 10; the mean of these is CIDEr of the corpus.

    Args:
      candidates: the answers.
      references: the right answer for each.
    """
    said, meant = ([tokens(text) for text in texts] for texts in (candidates, references))
    scores = [0.0] * len(references)
    for order in _ORDERS:
        counted = [ngrams(words, order) for words in meant]
        texts_with = Counter(ngram for counts in counted for ngram in counts)
        for row, (words, counts) in enumerate(zip(said, counted, strict=True)):
            likeness = _cosine(ngrams(words, order), counts, texts_with, len(references))
            # Lengths are counted in pairs of words, as in the original.
            apart = max(len(words) - 1, 0) - max(len(meant[row]) - 1, 0)
            penalty = math.exp(-(apart**2) / (2 * _SIGMA**2))
            scores[row] += 10 * likeness * penalty / len(_ORDERS)
    return scores


def _cosine(said: _Counts, meant: _Counts, texts_with: _Counts, texts: int) -> float:
    """Returns the cosine of tf-idf vectors; counts of the answer are clipped to the reference's."""
    rarity = {
        ngram: math.log(texts) - math.log(max(texts_with[ngram], 1)) for ngram in said | meant
    }
    ours, theirs = (
        {ngram: count * rarity[ngram] for ngram, count in counts.items()}
        for counts in (said, meant)
    )
    norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
    shared = sum(min(weight, theirs.get(n, 0.0)) * theirs.get(n, 0.0) for n, weight in ours.items())
    return shared / norms if norms else 0.0
