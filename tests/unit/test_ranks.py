"""Ranks by hand, ties, equal captions, chance; medians of resamples."""

from __future__ import annotations

import numpy as np
import pytest

from m3djax.contracts import statistics
from m3djax.evaluate.retrieval.ranking import chance, ranks, ranks_of


def test_ranks_by_hand() -> None:
    similarity = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8], [0.7, 0.6, 0.1]])
    np.testing.assert_array_equal(ranks_of(similarity, np.arange(3), np.arange(3)), [1, 2, 3])
    # The first and the last caption are the same: both are right for both.
    ids = np.array([4, 5, 4])
    np.testing.assert_array_equal(ranks_of(similarity, ids, ids), [1, 2, 1])


@pytest.mark.parametrize("value", [1.0, 0.0, np.nan])
def test_a_model_that_cannot_tell_anything_apart_is_last(value: float) -> None:
    ids = np.array([0, 1, 2, 2])
    np.testing.assert_array_equal(ranks_of(np.full((4, 4), value), ids, ids), [4, 4, 3, 3])


def test_pieces_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(2, 17, 6))
    ids = rng.integers(0, 9, 17)
    whole = ranks_of(queries @ candidates.T, ids, ids)
    monkeypatch.setattr("m3djax.evaluate.retrieval.ranking._ROWS", 5)
    np.testing.assert_array_equal(ranks(queries, candidates, ids, ids), whole)


def test_chance_is_what_random_orders_give() -> None:
    rng = np.random.default_rng(0)
    ids = np.array([0, 0, 0, 1, 1, 2, 3, 4])
    drawn = [ranks_of(rng.permuted(np.tile(np.arange(8.0), (8, 1)), axis=1), ids, ids)
             for _ in range(4000)]  # fmt: skip
    for k in (1, 3, 6, 7, 8):
        assert chance(ids, ids, k) == pytest.approx(np.mean(np.array(drawn) <= k), abs=0.01)
    assert chance(ids, ids, 8) == 1


def test_medians_of_resamples() -> None:
    """Against resamples that are written out."""
    rng = np.random.default_rng(0)
    values, unit = rng.integers(1, 30, 21).astype(float), rng.integers(0, 6, 21)
    draws = statistics.draw(6, resamples=200)
    estimate = statistics.median(values, unit, draws)
    assert estimate.value == np.median(values)
    written = [np.median(np.repeat(values, row[unit].astype(int))) for row in draws]
    np.testing.assert_array_equal(estimate.samples, written)
    low, high = estimate.interval
    assert low <= estimate.value <= high
