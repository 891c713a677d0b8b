"""Crops around structures and points: where they lie, and what a random number decides."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import around
from data_pipelines.around import Candidates, Foreground
from data_pipelines.errors import ConfigError
from data_pipelines.lru import LruCache
from data_pipelines.placement import Ground, PlacedCropMasks, Uniform, Whole
from data_pipelines.windows import Window

SHAPE = (9, 8, 10)
NAMES = {1: "liver", 2: "tumour", 3: "kidney_left"}
VOXELS = st.tuples(*[st.integers(0, side - 1) for side in SHAPE])
SIZES = st.tuples(*[st.integers(1, 12)] * 3)
SEEDS = st.integers(0, 1000)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(around, "_cache", LruCache(4))


def ground(
    marks: dict[tuple[int, int, int], int],
    points: dict[str, list[Any]] | None = None,
    *,
    study: str = "a",
    part: tuple[float, float] = (0.0, 1.0),
    mask_valid: bool = True,
) -> Ground:
    """A record whose mask has single voxels."""
    mask = np.zeros(SHAPE, np.uint8)
    for voxel, value in marks.items():
        mask[voxel] = value
    record = {
        "image": np.zeros(SHAPE, np.int16),
        "mask": mask,
        "mask_valid": mask_valid,
        "affine": np.eye(4),
        "source": "scan",
        "study_id": study,
        "points": json.dumps(points) if points else "",
    }
    return Ground(record, NAMES, part)


def start(window: Window) -> np.ndarray:
    """The window's first voxel in the volume; negative in the padding."""
    return np.array(
        [along.start - low for along, (low, _) in zip(window.slices, window.pads, strict=True)]
    )


def is_around(window: Window, size: tuple[int, ...], voxel: tuple[float, ...]) -> None:
    """The window is centred on the voxel, but for what keeps it inside the volume."""
    assert window.shape == size
    for axis, side in enumerate(SHAPE):
        along = window.slices[axis]
        assert along.start - 0.5 <= voxel[axis] <= along.stop - 0.5
        if size[axis] <= side:
            wanted = round(voxel[axis] - (size[axis] - 1) / 2)
            assert start(window)[axis] == min(max(wanted, 0), side - size[axis])


@settings(max_examples=60)
@given(VOXELS, SIZES, SEEDS)
def test_a_crop_of_foreground_is_around_its_voxel(
    voxel: tuple[int, int, int], size: tuple[int, ...], seed: int
) -> None:
    around._cache = LruCache(4)
    here = ground({voxel: 2})
    windows = [Foreground((), 1.0)(here, size, np.random.default_rng(seed)) for _ in range(2)]
    is_around(windows[0], size, voxel)
    assert windows[0] == windows[1]


@settings(max_examples=60)
@given(st.tuples(*[st.floats(0, side - 1) for side in SHAPE]), SIZES, SEEDS)
def test_a_crop_of_candidates_is_around_its_point(
    point: tuple[float, ...], size: tuple[int, ...], seed: int
) -> None:
    here = ground({}, {"candidates": [point]})
    is_around(Candidates()(here, size, np.random.default_rng(seed)), size, point)


def test_every_label_and_every_point_has_the_same_share() -> None:
    marks = {(1, 1, x): 1 for x in range(9)} | {(7, 6, 8): 2}
    rng, here = np.random.default_rng(0), ground(marks)
    starts = [start(Foreground((), 1.0)(here, (1, 1, 1), rng)) for _ in range(400)]
    assert 0.43 < np.mean([one[0] == 7 for one in starts]) < 0.57
    assert {int(one[2]) for one in starts if one[0] == 1} == set(range(9))
    here = ground({}, {"candidates": [[1, 1, 1], [7, 6, 8]]})
    starts = [start(Candidates()(here, (1, 1, 1), rng)) for _ in range(400)]
    assert 0.43 < np.mean([one[0] == 7 for one in starts]) < 0.57


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_crops_around_structures(share: float) -> None:
    here, rng = ground({(4, 4, 5): 1}), np.random.default_rng(0)
    hits = [
        tuple(start(Foreground((), share)(here, (1, 1, 1), rng))) == (4, 4, 5) for _ in range(400)
    ]
    assert abs(np.mean(hits) - share) < 0.07


@pytest.mark.parametrize(
    "placement, here",
    [
        (Foreground(("kidney_.*",), 1.0), ground({(4, 4, 5): 1})),
        (Foreground((), 1.0), ground({(4, 4, 5): 1}, mask_valid=False)),
        (Foreground((), 1.0), ground({(1, 4, 5): 1}, part=(0.5, 1.0))),
        (Foreground((), 1.0), ground({(4, 4, 5): 9})),  # a label without a name
        (Candidates(), ground({}, {"others": [[4, 4, 5]]})),
        (Candidates(), ground({}, {"candidates": [[1, 4, 5]]}, part=(0.5, 1.0))),
        (Candidates(), ground({}, {"candidates": []})),
    ],
)
def test_without_a_structure_or_point_crops_are_anywhere(placement: Any, here: Ground) -> None:
    """They have the positions of `Uniform`, in the part that crops are cut from."""
    rng, low = np.random.default_rng(0), here.ends[0][0]
    starts = np.stack([start(placement(here, (1, 1, 1), rng)) for _ in range(600)])
    for axis, side in enumerate(SHAPE):
        first = low if axis == 0 else 0
        assert set(starts[:, axis].tolist()) == set(range(first, side))


def test_large_structures_are_drawn_from_a_fixed_choice_of_their_voxels() -> None:
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[:20], mask[30, 1, 2] = 1, 2
    first, again = around._drawn(mask), around._drawn(mask.copy())
    assert {value: len(voxels) for value, voxels in first.items()} == {1: 1024, 2: 1}
    assert (mask[tuple(first[1].T)] == 1).all() and first[2].tolist() == [[30, 1, 2]]
    assert len(np.unique(first[1], axis=0)) == 1024
    for value, voxels in first.items():
        np.testing.assert_array_equal(voxels, again[value])
    assert around._drawn(np.zeros((3, 3, 3), np.uint8)) == {}


def test_voxels_are_searched_once_per_record(monkeypatch: pytest.MonkeyPatch) -> None:
    searched, drawn = [], around._drawn
    monkeypatch.setattr(around, "_drawn", lambda mask: searched.append(1) or drawn(mask))
    here, other = ground({(4, 4, 5): 1}), ground({(1, 1, 1): 1}, study="b")
    rng, placement = np.random.default_rng(0), Foreground((), 1.0)
    for one in (here, other, here, other):
        placement(one, (2, 2, 2), rng)
    assert len(searched) == 2
    for number in range(4):  # as many as the cache holds
        placement(ground({(2, 2, 2): 1}, study=f"c{number}"), (2, 2, 2), rng)
    placement(here, (2, 2, 2), rng)
    assert len(searched) == 7


def test_masks_of_other_crops_are_those_of_the_placement() -> None:
    here = ground({(4, 4, 5): 2})
    masks = PlacedCropMasks(here, (3, 3, 3), Foreground((), 1.0))
    for seed in range(5):
        assert masks(np.random.default_rng(seed))[1, 1, 1] == 2
    keys = {
        PlacedCropMasks(one, size, at).key()
        for one in (here, ground({}, study="b"), ground({}, part=(0.0, 0.5)))
        for size in ((3, 3, 3), (4, 4, 4))
        for at in (Uniform(), Whole(), Foreground((), 1.0))
    }
    assert len(keys) == 18
    assert masks.key() in keys


@pytest.mark.parametrize(
    "labels, share, message",
    [
        ((), -0.1, "share=-0.1 must be a share, 0 to 1"),
        ((), 1.1, "share=1.1 must be a share, 0 to 1"),
        (("liver", "("), 0.5, r"labels: '\(' is not a regular expression"),
    ],
)
def test_values_that_cannot_work(labels: tuple[str, ...], share: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Foreground(labels, share)


def test_only_foreground_needs_the_mask() -> None:
    needs = [at.needs_mask for at in (Uniform(), Whole(), Candidates(), Foreground())]
    assert needs == [False, False, False, True]
