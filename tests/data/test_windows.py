"""Windows of crops: their shape, the voxels they hold, and where these voxels are in the volume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.placement import Ground, Uniform, Whole, place
from data_pipelines.volume import transform
from data_pipelines.windows import Window, cut, resize

FILL = -7
SHAPES = st.tuples(*[st.integers(1, 7)] * 3)
PARTS = st.sampled_from([(0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (0.25, 0.75)])
SEEDS = st.integers(0, 1000)


def volume(shape: tuple[int, ...]) -> np.ndarray:
    """Every voxel has another value."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def same_voxels(window: Window, shape: tuple[int, ...]) -> None:
    """Every voxel of the window is the voxel of the volume at its position, or the fill."""
    whole, found = volume(shape), window.of(volume(shape), FILL)
    assert found.shape == window.shape
    places = np.stack(np.indices(found.shape), -1).reshape(-1, 3)
    there = transform(window.to_volume(window.shape), places).round().astype(int)
    inside = ((there >= 0) & (there < shape)).all(1)
    np.testing.assert_array_equal(found.ravel()[inside], whole[tuple(there[inside].T)])
    assert (found.ravel()[~inside] == FILL).all()


@given(SHAPES, SHAPES, SEEDS)
def test_a_placed_window_has_its_size_and_lies_in_the_volume(
    shape: tuple[int, ...], size: tuple[int, ...], seed: int
) -> None:
    window = place(shape, size, np.random.default_rng(seed))
    assert window.shape == size
    same_voxels(window, shape)
    for along, pads, side, want in zip(window.slices, window.pads, shape, size, strict=True):
        # As much of the volume as the window can hold, and no padding if the volume is larger.
        assert along.stop - along.start == min(side, want)
        assert sum(pads) == max(want - side, 0)


@given(SHAPES, SHAPES, st.tuples(*[st.floats(-3, 9)] * 3))
def test_the_window_around_a_point_is_the_nearest_one_inside(
    shape: tuple[int, ...], size: tuple[int, ...], middle: tuple[float, ...]
) -> None:
    window = Window.around(shape, size, np.array(middle))
    assert window.shape == size
    same_voxels(window, shape)
    for axis, (side, want) in enumerate(zip(shape, size, strict=True)):
        low, high = window.pads[axis]
        if side <= want:  # the volume is centred in the window
            assert low + high == want - side and abs(low - high) <= 1
            continue
        assert (low, high) == (0, 0)
        starts = np.arange(side - want + 1)
        distances = np.abs(starts + (want - 1) / 2 - middle[axis])
        assert distances[window.slices[axis].start] <= distances.min() + 1e-9


@given(SHAPES)
def test_the_whole_window_is_the_volume(shape: tuple[int, ...]) -> None:
    window = Window.whole(shape)
    np.testing.assert_array_equal(window.of(volume(shape), FILL), volume(shape))
    assert window.middle == tuple(side // 2 for side in shape)
    np.testing.assert_array_equal(window.to_volume(shape), np.eye(4))


@given(SHAPES, SHAPES, PARTS, SEEDS)
def test_no_placement_leaves_its_part_of_the_volume(
    shape: tuple[int, ...], size: tuple[int, ...], part: tuple[float, float], seed: int
) -> None:
    ground = Ground({"image": volume(shape)}, part=part)
    (low, high), *_ = ground.ends
    if low == high:  # the part of a thin volume may have no slice
        return
    for at in (Uniform(), Whole()):
        window = at(ground, size, np.random.default_rng(seed))
        assert low <= window.slices[0].start < window.slices[0].stop <= high
        wanted = size if at == Uniform() else (high - low, *shape[1:])
        assert window.shape == wanted
        assert window == at(ground, size, np.random.default_rng(seed))


@settings(max_examples=30)
@given(SHAPES, st.integers(1, 3), SEEDS)
def test_a_cut_at_its_own_size_is_not_resampled(
    size: tuple[int, int, int], factor: int, seed: int
) -> None:
    shape = tuple(side * factor for side in size)
    window = place(shape, size, np.random.default_rng(seed))
    found = cut(volume(shape), window, size, FILL)
    np.testing.assert_array_equal(found, window.of(volume(shape), FILL))


def test_a_resampled_cut_keeps_means_and_positions() -> None:
    """Twice as coarse: every new voxel is the centre of eight old ones, in `to_volume` too."""
    ramp = np.broadcast_to(np.arange(16, dtype=np.int16) * 100, (8, 8, 16))
    window = Window.at([(0, 8), (0, 8), (0, 16)], (8, 8, 16), (0, 0, 0))
    found = cut(ramp, window, (4, 4, 8), FILL)
    assert found.dtype == np.int16 and found.shape == (4, 4, 8)
    there = transform(window.to_volume((4, 4, 8)), np.array([[0, 0, 3], [1, 2, 4]]))
    np.testing.assert_allclose(there, [[0.5, 0.5, 6.5], [2.5, 4.5, 8.5]])
    np.testing.assert_allclose(found[0, 0, 2:6], [450, 650, 850, 1050], atol=2)


@pytest.mark.parametrize("size", [(3, 4, 5), (6, 8, 10), (9, 4, 2)])
def test_a_resized_constant_stays_constant(size: tuple[int, int, int]) -> None:
    image = np.full((6, 8, 10), 123, np.int16)
    np.testing.assert_allclose(resize(image, size), np.full(size, 123.0), rtol=1e-5)
