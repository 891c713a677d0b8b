"""BLEU as Hugging Face's `evaluate` computes it; M3D reports its BLEU-1.

Papineni et al. 2002, without smoothing, with sacrebleu's tokenizer "13a"; case counts. It is 0 if
no n-gram of some length is right. For COCO's BLEU see `coco`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from sacrebleu.metrics import BLEU
from sacrebleu.metrics.bleu import BLEUScore
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a


def tokens(text: str) -> list[str]:
    """Splits a text into words and punctuation with sacrebleu's tokenizer 13a."""
    return Tokenizer13a()(text.rstrip()).split()


def bleu(candidate: str, reference: str, order: int = 4) -> float:
    """Returns BLEU of one text, 0 to 1.

    Args:
      candidate: the answer.
      reference: the right answer.
      order: length of the longest n-grams in words.
    """
    return corpus_bleu([candidate], [reference], order)


def corpus_bleu(candidates: Sequence[str], references: Sequence[str], order: int = 4) -> float:
    """Returns BLEU of many texts; their n-grams are counted together, so it is no mean of values.

    Args:
      candidates: the answers.
      references: the right answer for each.
      order: length of the longest n-grams in words.
    """
    return counts(candidates, references, order).score / 100


def counts(candidates: Sequence[str], references: Sequence[str], order: int = 4) -> BLEUScore:
    """Returns sacrebleu's counts and precisions behind BLEU of many texts; precisions in percent.

    For arguments see `corpus_bleu`.
    """
    return _metric(order).corpus_score(list(candidates), [list(references)])


@functools.cache
def _metric(order: int) -> BLEU:
    return BLEU(tokenize="13a", smooth_method="none", max_ngram_order=order, force=True)
