"""BLEU as Hugging Face's `evaluate` computes it, which is what M3D reports (with one word).

Papineni et al. 2002, without smoothing, after sacrebleu's tokenizer "13a"; small and capital
letters differ. It is 0 where no n-gram of some length is right. For COCO's see `coco`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from sacrebleu.metrics import BLEU
from sacrebleu.metrics.bleu import BLEUScore
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a


def tokens(text: str) -> list[str]:
    """The words and marks of a text by sacrebleu's tokenizer 13a."""
    return Tokenizer13a()(text.rstrip()).split()


def bleu(candidate: str, reference: str, order: int = 4) -> float:
    """BLEU of one text, 0 to 1.

    Args:
      candidate: what was said.
      reference: what should have been said.
      order: words of the longest n-grams.
    """
    return corpus_bleu([candidate], [reference], order)


def corpus_bleu(candidates: Sequence[str], references: Sequence[str], order: int = 4) -> float:
    """BLEU of many texts, whose n-grams are counted together: not the mean of their values.

    Args:
      candidates: what was said.
      references: one for each.
      order: words of the longest n-grams.
    """
    return counts(candidates, references, order).score / 100


def counts(candidates: Sequence[str], references: Sequence[str], order: int = 4) -> BLEUScore:
    """What BLEU of many texts is made of, as sacrebleu gives it: its precisions are in percent.

    For arguments see `corpus_bleu`.
    """
    return _metric(order).corpus_score(list(candidates), [list(references)])


@functools.cache
def _metric(order: int) -> BLEU:
    return BLEU(tokenize="13a", smooth_method="none", max_ngram_order=order, force=True)
