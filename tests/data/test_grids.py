"""Labels are turned to an image's axes, in all ways that two files can be stored."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from nibabel import orientations

from data_pipelines.readers.grids import TOLERANCE, turn

SHAPE = (3, 4, 5)
LIKE = np.array([[0, 0, -0.7, 90.0], [0, 0.7, 0, -20], [2.5, 0, 0, 300], [0, 0, 0, 1]])
POSES = [
    np.array([*zip(axes, flips, strict=True)], float)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("pose", POSES, ids=lambda pose: str(pose.astype(int).tolist()))
def test_any_pose_is_turned_back(pose: np.ndarray) -> None:
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    stored = orientations.apply_orientation(labels, pose)
    affine = LIKE @ orientations.inv_ornt_aff(pose, SHAPE)
    turned = turn(stored, affine, LIKE)
    np.testing.assert_array_equal(turned.labels, labels)
    assert np.shares_memory(turned.labels, stored), "no voxel is copied"
    assert turned.offset.tolist() == [0, 0, 0] and turned.apart < 1e-9


@pytest.mark.parametrize("start", [(2, 0, 1), (-1, 3, 0)])
def test_a_part_of_an_image_has_an_offset(start: tuple[int, int, int]) -> None:
    shift = np.eye(4)
    shift[:3, 3] = start
    turned = turn(np.zeros((2, 2, 2)), LIKE @ shift, LIKE)
    assert turned.offset.tolist() == list(start) and turned.offset.dtype.kind == "i"
    assert turned.apart < 1e-9


def test_rounded_headers_agree_and_other_grids_do_not() -> None:
    labels = np.zeros((40, 40, 40))
    rounded = LIKE.copy()
    rounded[:3, 3] += 0.03
    assert 0 < turn(labels, rounded, LIKE).apart < TOLERANCE
    half = LIKE.copy()
    half[:3, 3] += LIKE[:3, 0] / 2
    assert turn(labels, half, LIKE).apart == pytest.approx(0.5)
    coarse = LIKE @ np.diag([1.02, 1, 1, 1])  # 2 % thicker slices: 0.8 voxels after 40 of them
    assert turn(labels, coarse, LIKE).apart == pytest.approx(39 * 0.02)
