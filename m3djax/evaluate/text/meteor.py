"""METEOR (Banerjee and Lavie 2005; Lavie and Agarwal 2007) by nltk: equal words and equal stems.

The third stage, synonyms by WordNet, is left out: nltk's WordNet is not on the package index. So
values are a little below those of `evaluate`, which M3D reports, where a synonym was said.
"""

from __future__ import annotations

import re

from nltk.tokenize import NLTKWordTokenizer
from nltk.translate.meteor_score import single_meteor_score

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_WORDS = NLTKWordTokenizer()


class _NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> tuple[()]:
        """The meanings of a word."""
        return ()


def tokens(text: str) -> list[str]:
    """The words of a text by the Penn Treebank's rules, sentence by sentence."""
    return [
        word for sentence in _SENTENCE.split(text.strip()) for word in _WORDS.tokenize(sentence)
    ]


def meteor(candidate: str, reference: str) -> float:
    """METEOR of one text, 0 to 1: exact and stem stages, alpha 0.9, beta 3, gamma 0.5.

    Args:
      candidate: what was said.
      reference: what should have been said.
    """
    return float(single_meteor_score(tokens(reference), tokens(candidate), wordnet=_NoSynonyms()))
