"""BLEU and ROUGE-L as in COCO's caption challenge (arXiv 1504.00325; pycocoevalcap).

They differ from `bleu` and `rouge`: punctuation is dropped, a missing n-gram leaves BLEU above 0,
and ROUGE-L prefers recall.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

_ORDERS = 4
_TINY, _SMALL = 1e-15, 1e-9  # they keep products and quotients above zero
_BETA = 1.2


def tokens(text: str) -> list[str]:
    """Splits a text into words of lower-case letters and digits."""
    return re.sub("[^a-z0-9]+", " ", text.lower()).split()


def ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """Counts the n-grams of `order` words."""
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def bleu(candidate: str, reference: str) -> list[float]:
    """Returns BLEU-1 to 4 of one text; see `corpus_bleu`."""
    return corpus_bleu([candidate], [reference])


def corpus_bleu(candidates: Sequence[str], references: Sequence[str]) -> list[float]:
    """Returns BLEU-1 to 4 of many texts, whose n-grams are counted together.

    Args:
      candidates: the answers.
      references: the right answer for each.
    """
    pairs = [(tokens(c), tokens(r)) for c, r in zip(candidates, references, strict=True)]
    counts = np.sum([_counts(*pair) for pair in pairs], axis=0)
    said, length = counts[0, 1], sum(len(reference) for _, reference in pairs)
    precisions = (counts[:, 0] + _TINY) / (counts[:, 1] + _SMALL)
    ratio = (said + _TINY) / (length + _SMALL)
    brevity = np.exp(min(1 - 1 / ratio, 0))
    return list(map(float, np.cumprod(precisions) ** (1 / np.arange(1, _ORDERS + 1)) * brevity))


def rouge_l(candidate: str, reference: str) -> float:
    """Returns ROUGE-L of one text: the F measure in which recall counts 1.2 times as much."""
    found = _SCORER.score(reference, candidate)["rougeL"]
    precision, recall = found.precision, found.recall
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


class _Tokenizer(Tokenizer):
    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


_SCORER = RougeScorer(["rougeL"], tokenizer=_Tokenizer())


def _counts(candidate: list[str], reference: list[str]) -> Int[np.ndarray, "4 2"]:
    """Returns the numbers of right n-grams and of all n-grams of the answer, by order."""
    rows = []
    for order in range(1, _ORDERS + 1):
        said = ngrams(candidate, order)
        rows.append((sum((said & ngrams(reference, order)).values()), sum(said.values())))
    return np.array(rows)
