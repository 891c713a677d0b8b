"""ROUGE (Lin 2004) by the package rouge-score, as Hugging Face's `evaluate` and M3D call it.

Words are runs of lower-case letters and digits. For COCO's ROUGE-L see `coco`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, get_args

from rouge_score.rouge_scorer import RougeScorer

RougeType = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


@dataclasses.dataclass(frozen=True)
class Overlap:
    """The overlap of two texts.

    Attributes:
      precision: shared part of the candidate.
      recall: shared part of the reference.
      f: harmonic mean of both, the reported value.
    """

    precision: float
    recall: float
    f: float


def rouge(candidate: str, reference: str, *, stemmed: bool = False) -> dict[RougeType, Overlap]:
    """Returns the overlap in words (1), pairs of words (2) and longest common subsequences.

    The subsequences are of the whole text (L) or of each line (Lsum).

    Args:
      candidate: the answer.
      reference: the right answer.
      stemmed: whether to compare the stems of words longer than 3 letters (Porter 1980).
    """
    found = _scorer(stemmed).score(reference, candidate)
    return {kind: Overlap(s.precision, s.recall, s.fmeasure) for kind, s in found.items()}


@functools.cache
def _scorer(stemmed: bool) -> RougeScorer:
    return RougeScorer(list(get_args(RougeType)), use_stemmer=stemmed)
