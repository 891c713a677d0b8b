"""Volumes cut into crops and put together again."""

import numpy as np
import pytest

from m3djax.contracts.share import Share
from m3djax.evaluate.tiles import cut


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 7, 12), (3, 10, 5), (2, 2, 2)])
@pytest.mark.parametrize("stride", [None, (2, 3, 3)])
def test_every_voxel_counts_once_and_comes_back(shape, stride):
    image = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    tiles = cut(image, (4, 4, 4), stride)
    assert tiles.images.shape[1:] == (4, 4, 4)
    assert tiles.first.sum() == image.size
    assert not (tiles.first & ~tiles.inside).any()
    np.testing.assert_array_equal(tiles.stitch(tiles.images), image)


def test_padding_is_air_at_the_end():
    image = np.array([5, -1000, 7], np.int16).reshape(3, 1, 1)
    tiles = cut(image, (4, 1, 1))
    np.testing.assert_array_equal(tiles.images.ravel(), [5, -1000, 7, -1000])
    np.testing.assert_array_equal(tiles.inside.ravel(), [True, True, True, False])


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_share_batches_of_one_size(processes):
    parts = [list(Share(2, number, processes).batches(7)) for number in range(processes)]
    assert all(len(numbers) == len(counts) == 2 for part in parts for numbers, counts in part)
    kept = [number for part in parts for numbers, counts in part for number in numbers[counts]]
    assert sorted(kept) == list(range(7))


def test_a_batch_larger_than_all_is_filled_up():
    ((numbers, counts),) = Share(5).batches(2)
    np.testing.assert_array_equal(numbers, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(counts, [True, True, False, False, False])
    assert not list(Share(5, 1, 2).batches(2)), "nothing is left for the second process"
