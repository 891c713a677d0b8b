"""METEOR (Banerjee and Lavie 2005; Lavie and Agarwal 2007) by nltk: equal words and equal stems.

The third stage, synonyms by WordNet, is left out, because nltk's WordNet is not on the package
index. So values of answers with synonyms are a little below those of `evaluate`, which M3D reports.
"""

from __future__ import annotations

import re

from nltk.tokenize import NLTKWordTokenizer
from nltk.translate.meteor_score import single_meteor_score

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_WORDS = NLTKWordTokenizer()


class _NoSynonyms:
    """An empty WordNet."""

    def synsets(self, word: str) -> tuple[()]:
        """Returns no meanings of a word."""
        return ()


def tokens(text: str) -> list[str]:
    """Splits a text into words by the rules of the Penn Treebank, sentence by sentence."""
    return [
        word for sentence in _SENTENCE.split(text.strip()) for word in _WORDS.tokenize(sentence)
    ]


def meteor(candidate: str, reference: str) -> float:
    """Returns METEOR of one text, 0 to 1: exact and stem stages, alpha 0.9, beta 3, gamma 0.5.

    Args:
      candidate: the answer.
      reference: the right answer.
    """
    return float(single_meteor_score(tokens(reference), tokens(candidate), wordnet=_NoSynonyms()))
