"""Volumes cut into crops and put together again."""

import numpy as np
import pytest

from m3djax.evaluate.tiles import batches, cut


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


def test_batches_have_one_size():
    found = list(batches({"x": np.arange(5)}, 2))
    assert [valid for _, valid in found] == [2, 2, 1]
    assert all(len(batch["x"]) == 2 for batch, _ in found)
    kept = np.concatenate([batch["x"][:valid] for batch, valid in found])
    np.testing.assert_array_equal(kept, np.arange(5))


def test_a_batch_larger_than_all_is_filled_up():
    ((batch, valid),) = batches({"x": np.arange(2)}, 5)
    assert valid == 2
    np.testing.assert_array_equal(batch["x"], [0, 1, 0, 1, 0])
