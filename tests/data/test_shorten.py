"""Shortened reports keep their start and do not exceed the limit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.text.shorten import choose_sentences, released_text

COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=20).map(np.array)


@settings(deadline=None)
@given(COUNTS, st.integers(1, 200), st.integers(0, 1000))
def test_sentences_fit_and_no_other_one_would(counts: np.ndarray, budget: int, seed: int) -> None:
    keep = choose_sentences(counts, budget, np.random.default_rng(seed))
    assert keep.dtype == bool and keep.shape == counts.shape and keep[0]
    room = budget - counts[keep].sum()
    if counts[0] <= budget:
        assert room >= 0
        assert (counts[~keep] > room).all(), "a sentence was left out that would have fitted"
    else:
        assert keep.sum() == 1


def test_every_sentence_but_the_first_is_left_out_at_times() -> None:
    counts = np.array([5, 5, 5, 5])
    kept = np.mean(
        [choose_sentences(counts, 15, np.random.default_rng(seed)) for seed in range(300)], 0
    )
    assert kept[0] == 1
    np.testing.assert_allclose(kept[1:], 2 / 3, atol=0.1)


def words(text: str) -> int:
    """Tokens with two special ones."""
    return len(text.split()) + 2


SENTENCES = st.lists(st.sampled_from(["a", "b c", "d e f", "g h i j"]), min_size=2, max_size=9)


@settings(deadline=None)
@given(SENTENCES, st.integers(3, 20), st.integers(0, 1000))
def test_the_released_way_takes_sentences_once(sentences: list[str], limit: int, seed: int) -> None:
    text = ".".join(sentences)
    first, *others = released_text(text, limit, words, np.random.default_rng(seed)).split(".")
    assert first == sentences[0]
    assert len(set(others)) == len(others) and set(others) <= set(sentences[1:])
    assert first not in others
    assert sum(map(words, others)) <= limit, "the first one does not count"
    left = {s for s in sentences[1:] if s not in others and s != first}
    assert all(sum(map(words, others)) + words(s) > limit for s in left)


def test_the_released_way_cuts_decimals_and_mixes_the_order() -> None:
    text = "A nodule of 1.5 cm. No effusion. Normal heart"
    drawn = {released_text(text, 50, words, np.random.default_rng(seed)) for seed in range(40)}
    assert all(said.startswith("A nodule of 1") for said in drawn)
    orders = {tuple(said.split(".")[1:]) for said in drawn}
    assert len(orders) > 2, "sentences come out as they were drawn"
    assert all(one != two for order in orders for one, two in pairwise(order))
