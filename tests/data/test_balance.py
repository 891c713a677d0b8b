"""Questions do not reveal their answers: yes and no are equally likely for every label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from data_pipelines.captions import balance
from data_pipelines.captions.balance import odds
from data_pipelines.lru import LruCache

VALUES = (1, 2, 3, 4)
SHARES = {1: 0.5, 2: 0.8, 3: 0.15, 4: 0.02}
SIDE = 6


class Crops:
    """Label 1 + n is in a crop with its own probability; label 4 hardly ever."""

    def __init__(self, name: str = "crops", shares: dict[int, float] = SHARES) -> None:
        self.name, self.shares, self.looks = name, shares, 0

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        self.looks += 1
        crop = np.zeros((SIDE,) * 3, np.uint8)
        for value, share in self.shares.items():
            if rng.random() < share:
                crop[value] = value
        return crop

    def key(self) -> tuple[Any, ...]:
        return (self.name,)


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "_cache", LruCache(8))


def asked(others: Crops, crop: np.ndarray) -> balance.Odds:
    visible = [value for value in VALUES if (crop == value).any()]
    return odds(others, VALUES, visible, [v for v in VALUES if v not in visible], least=4)


def test_yes_and_no_are_equally_likely_for_every_label() -> None:
    others, rng = Crops(), np.random.default_rng(1)
    yes, no = np.zeros(5), np.zeros(5)
    for _ in range(2000):
        found = asked(others, others(rng))
        assert 0 <= sum(found.yes.values()) + sum(found.no.values()) <= 1 + 1e-6
        for table, sums in ((found.yes, yes), (found.no, no)):
            for value, probability in table.items():
                sums[value] += probability
    np.testing.assert_allclose(yes[1:4] / no[1:4], 1, atol=0.25)
    assert yes[4] == no[4] == 0, "a label that is hardly ever visible tells its answer"


def test_as_often_as_possible_is_asked() -> None:
    """Some crop is asked about for certain."""
    others, rng = Crops(), np.random.default_rng(2)
    sums = [
        sum((*found.yes.values(), *found.no.values()))
        for found in (asked(others, others(rng)) for _ in range(500))
    ]
    assert max(sums) == pytest.approx(1)


def test_wrong_choices_are_right_elsewhere() -> None:
    """A label's share of the wrong choices is nearer to its share of the right ones."""
    shares = {1: 0.15, 2: 0.3, 3: 0.4, 4: 0.2, 5: 0.35}
    others, rng = Crops(shares=shares), np.random.default_rng(3)
    right, weighed, equal = np.zeros((3, 6))
    for _ in range(3000):
        crop = others(rng)
        absent = [value for value in shares if not (crop == value).any()]
        found = odds(others, tuple(shares), sorted(set(shares) - set(absent)), absent, 1)
        often = sum(found.yes.values())
        right[list(found.yes)] += list(found.yes.values())
        for value, weight in found.wrong.items():
            weighed[value] += often * weight / sum(found.wrong.values())
            equal[value] += often / len(found.wrong)
    off = [np.abs(some / some.sum() - right / right.sum()).max() for some in (weighed, equal)]
    assert off[0] < 0.03 and off[1] > 2 * off[0]


def test_without_shares_only_both_answers_are_as_likely() -> None:
    found = odds(None, VALUES, [1, 2], [3], least=4)
    assert found.yes == {1: 0.25, 2: 0.25} and found.no == found.wrong == {3: 0.5}
    assert odds(None, VALUES, [], [1], 4) == odds(None, VALUES, [1], [], 4)
    assert odds(None, VALUES, [], [1], 4).no == {}, "an answer that is always no is not asked for"


def test_labels_that_are_always_or_never_there_are_left_out() -> None:
    found = [
        odds(Crops("always", {1: 1.0, 2: 0.5}), VALUES, [1, 2], [3], 4),
        odds(Crops("never", {}), VALUES, [], [1, 2, 3, 4], 4),
    ]
    assert set(found[0].yes) == {2} and found[0].no == {}
    assert found[1] == balance.Odds({}, {}, {})


def test_a_record_is_looked_at_once() -> None:
    others = Crops()
    first = odds(others, VALUES, [1], [2], 4)
    looks = others.looks
    assert odds(others, VALUES, [1], [2], 4) == first and others.looks == looks > 100
    odds(others, VALUES, [1], [2], least=5)
    assert others.looks > looks, "another limit is another question"


def test_large_crops_are_counted_in_a_grid() -> None:
    mask = np.zeros((128, 128, 128), np.uint8)
    mask[:, :64] = 7
    counts = balance._count(mask)
    assert counts.sum() == mask.size
    np.testing.assert_allclose(counts[[0, 7]] / mask.size, 0.5, atol=0.02)
