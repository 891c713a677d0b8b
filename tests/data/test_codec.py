"""Compressed arrays, whole and in bricks, against plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.datasets import codec
from data_pipelines.datasets.codec import BRICK, Bricked, WholeArray, compress, decompress

SHAPE = (35, 130, 70)  # 3 x 3 x 2 bricks, and the last one along each axis is cut off
COUNT = 18


def volume(dtype: str = "int16", shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Returns an array in which no two voxels of a neighbourhood are equal."""
    return (np.arange(prod(shape)) % 251).reshape(shape).astype(dtype)


class Disk:
    """Buffers of bricks by number; notes which ones are read."""

    def __init__(self, array: np.ndarray, first: int) -> None:
        self.buffers = {first + n: compress(b) for n, b in enumerate(codec.bricks(array))}
        self.read: list[int] = []

    def __call__(self, numbers: Sequence[int]) -> list[bytes]:
        self.read += numbers
        return [self.buffers[number] for number in numbers]


VOLUME = volume()
FIRST = 40
BUFFERS = Disk(VOLUME, FIRST)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("layout", ["C", "F", "reversed"])
def test_a_buffer_has_the_array_whatever_its_layout(dtype: str, layout: str) -> None:
    array = volume(dtype, (3, 5, 7))
    array = array[::-1] if layout == "reversed" else np.asarray(array, order=layout)  # type: ignore[call-overload]
    back = decompress(compress(array), array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


@pytest.mark.parametrize(
    "values, dtype",
    [
        ([0, 255], "uint8"),
        ([0, 256], "int16"),
        ([-1, 255], "int16"),
        ([7, 7], "uint8"),
    ],
)
def test_only_what_fits_into_eight_bits_is_narrowed(values: list[int], dtype: str) -> None:
    array = np.array(values, np.int16)
    found = codec.narrow(array)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "shape, count",
    [
        ((1, 1, 1), 1),
        (BRICK, 1),
        ((17, 64, 64), 2),
        ((17, 65, 65), 8),
        (SHAPE, COUNT),
        ((0, 64, 64), 0),
    ],
)
def test_bricks_are_counted(shape: tuple[int, ...], count: int) -> None:
    assert codec.brick_count(shape) == count
    found = list(codec.bricks(np.empty(shape, np.uint8)))
    assert len(found) == count
    assert sum(brick.size for brick in found) == prod(shape)


def test_bricks_come_with_the_last_axis_fastest() -> None:
    found = list(codec.bricks(VOLUME))
    assert [brick.shape for brick in found[:2]] == [(16, 64, 64), (16, 64, 6)]
    np.testing.assert_array_equal(found[1], VOLUME[:16, :64, 64:])
    np.testing.assert_array_equal(found[2], VOLUME[:16, 64:128, :64])
    np.testing.assert_array_equal(found[-1], VOLUME[32:, 128:, 64:])


def window(side: int) -> st.SearchStrategy[slice]:
    """Returns slices of an axis, with open and negative ends, also empty ones."""
    end = st.none() | st.integers(-side - 2, side + 2)
    return st.builds(slice, end, end)


@settings(deadline=None, max_examples=60)
@given(st.tuples(*map(window, SHAPE)))
def test_a_window_of_bricks_is_the_window_of_the_array(where: tuple[slice, ...]) -> None:
    found = Bricked(BUFFERS, FIRST, SHAPE, VOLUME.dtype)[where]
    np.testing.assert_array_equal(found, VOLUME[where])
    assert found.dtype == VOLUME.dtype


@pytest.mark.parametrize(
    "where, read",
    [
        (np.s_[0:16, 0:64, 0:64], [0]),
        (np.s_[15:17, 0:1, 0:1], [0, 6]),
        (np.s_[34:35, 129:130, 69:70], [17]),
        (np.s_[0:1, 63:65, 63:65], [0, 1, 2, 3]),
        (np.s_[3:3, :, :], []),
    ],
)
def test_only_the_touched_bricks_are_read(where: tuple[slice, ...], read: list[int]) -> None:
    disk = Disk(VOLUME, FIRST)
    Bricked(disk, FIRST, SHAPE, VOLUME.dtype)[where]
    assert disk.read == [FIRST + number for number in read]


def test_bricks_have_no_steps_and_stay_on_disk() -> None:
    disk = Disk(VOLUME, FIRST)
    array = Bricked(disk, FIRST, SHAPE, VOLUME.dtype)
    array.load()
    assert not disk.read
    assert array.nbytes == 0
    with pytest.raises(AssertionError):
        array[::2, :, :]
    np.testing.assert_array_equal(np.asarray(array), VOLUME)
    assert np.asarray(array, np.float32).dtype == np.float32


def test_a_whole_array_is_decoded_once_and_counts_its_memory() -> None:
    data = compress(VOLUME)
    array = WholeArray(data, SHAPE, VOLUME.dtype)
    assert (array.nbytes, array.ndim, array.shape) == (len(data), 3, SHAPE)
    array.load()
    assert array.nbytes == VOLUME.nbytes
    np.testing.assert_array_equal(array[2:5, 1:9, 60:], VOLUME[2:5, 1:9, 60:])
    assert np.shares_memory(array[0:1, 0:1, 0:1], array[:, :, :])


def test_no_buffer_means_zeros() -> None:
    array = WholeArray(b"", (2, 3, 4), np.dtype("uint8"))
    assert array.nbytes == 0
    np.testing.assert_array_equal(np.asarray(array), np.zeros((2, 3, 4), np.uint8))
    assert array.nbytes == 24
