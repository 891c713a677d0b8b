"""ROUGE (Lin 2004) by the package rouge-score, as Hugging Face's `evaluate` and M3D call it.

Words are runs of small letters and digits. For COCO's ROUGE-L see `coco`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, get_args

from rouge_score.rouge_scorer import RougeScorer

Kind = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What two texts share.

    Attributes:
      precision: share of the candidate.
      recall: share of the reference.
      f: their harmonic mean, which is what is reported.
    """

    precision: float
    recall: float
    f: float


def rouge(candidate: str, reference: str, *, stemmed: bool = False) -> dict[Kind, Overlap]:
    """Shared words (1), pairs of words (2) and longest common subsequences (L, Lsum: by line).

    Args:
      candidate: what was said.
      reference: what should have been said.
      stemmed: compare the stems of words longer than 3 letters (Porter 1980).
    """
    found = _scorer(stemmed).score(reference, candidate)
    return {kind: Overlap(s.precision, s.recall, s.fmeasure) for kind, s in found.items()}


@functools.cache
def _scorer(stemmed: bool) -> RougeScorer:
    return RougeScorer(list(get_args(Kind)), use_stemmer=stemmed)
