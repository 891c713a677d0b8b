"""Bootstrap intervals: their coverage, and paired differences."""

import numpy as np
import pytest

from m3djax.contracts import statistics


def test_draws_are_whole_and_repeatable():
    draws = statistics.draw(7, seed=3)
    assert draws.shape == (statistics.RESAMPLES, 7)
    np.testing.assert_array_equal(draws.sum(1), 7)
    np.testing.assert_array_equal(draws, statistics.draw(7, seed=3))
    assert (draws != statistics.draw(7, seed=4)).any()


@pytest.mark.parametrize("units", [0, 1])
def test_a_single_unit_has_no_interval(units):
    with pytest.raises(ValueError, match="at least 2"):
        statistics.draw(units)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = statistics.draw(60)
    covered = 0
    for _ in range(200):
        low, high = statistics.weighted_mean(rng.normal(2, 1, 60), np.ones(60), draws).interval
        covered += low < 2 < high
    assert 180 <= covered <= 199  # 190 expected; the percentile bootstrap is a little narrow


def test_units_weigh_as_much_as_they_hold():
    sums, weights = np.array([10.0, 0.0]), np.array([1.0, 9.0])
    estimate = statistics.weighted_mean(sums, weights, statistics.draw(2))
    assert estimate.value == 1.0
    assert set(np.round(estimate.samples, 6)) == {0.0, 1.0, 10.0}


def test_a_difference_keeps_what_both_share():
    rng = np.random.default_rng(1)
    difficulty = rng.normal(0, 10, 50)
    draws, ones = statistics.draw(50), np.ones(50)
    a = statistics.weighted_mean(difficulty + 1, ones, draws)
    b = statistics.weighted_mean(difficulty, ones, draws)
    np.testing.assert_allclose((a - b).interval, [1, 1])
    assert a.interval[1] - a.interval[0] > 3


def test_balanced_accuracy_counts_classes_alike_and_skips_absent_ones():
    correct = np.array([[9.0, 0.0], [0.0, 1.0]])
    total = np.array([[10.0, 0.0], [0.0, 2.0]])
    estimate = statistics.balanced_accuracy(correct, total, statistics.draw(2))
    assert estimate.value == pytest.approx((0.9 + 0.5) / 2)
    assert set(np.round(estimate.samples, 6)) == {0.9, 0.7, 0.5}


def test_the_mean_of_estimates_averages_their_samples():
    estimates = [statistics.Estimate(v, np.array([v, v + 2])) for v in (1.0, 3.0)]
    mean = statistics.mean(estimates)
    assert mean.value == 2.0
    np.testing.assert_array_equal(mean.samples, [2.0, 4.0])


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ([0.1, 2], "better than"),
        ([-2, -0.1], "worse than"),
        ([-1, 1], "not clearly different from"),
    ],
)
def test_verdicts(interval, words):
    assert statistics.verdict(interval) == words


def test_numbers_are_written_with_their_interval():
    number = {"value": 0.5, "interval": [-0.25, 1.0]}
    assert statistics.number_text(number, "+.2f") == "+0.50 [-0.25, +1.00]"
