"""`Volume` refuses bad geometry, and keeps its geometry consistent."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.volume import Volume, transform
from tests.data.scans import affine_of

ARRAY = np.zeros((4, 5, 6), np.int16)
SINGULAR = np.diag([1.0, 2.0, 0.0, 1.0])
FLAT = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"array": ARRAY[0]}, "not a volume"),
        ({"array": ARRAY[:0]}, "not a volume"),
        ({"array": ARRAY.astype(complex)}, "not real numbers"),
        ({"units": "hounsfield"}, "unknown"),
        ({"mask": np.zeros((4, 5, 7), np.uint8)}, "another grid"),
        ({"mask": np.zeros((4, 5, 6), np.int16)}, "mask of type int16"),
        ({"affine": np.eye(3)}, "not a finite 4x4"),
        ({"affine": np.diag([1, np.nan, 1, 1])}, "not a finite 4x4"),
        ({"affine": SINGULAR}, "singular"),
        ({"affine": FLAT}, "singular"),
        ({"affine": np.diag([1.0, 1.0, 1.0, 2.0])}, "last row"),
        ({"affine": np.diag([1.0, 2.0, 3.0, 1.0]), "spacing": (1.0, 2.0, 2.0)}, "disagrees"),
        ({"spacing": (1.0, -1.0, 1.0)}, "spacing of"),
        ({"spacing": (1.0, 1.0)}, "spacing of"),
    ],
)
def test_refuses(fields: dict[str, Any], problem: str) -> None:
    """Each error names the file, the problem and a cure."""
    with pytest.raises(DataError, match=problem) as caught:
        Volume(**{"array": ARRAY, "units": "raw", "source": "scan.nii", **fields})
    assert str(caught.value).startswith("scan.nii: ")
    assert ". Cure: " in str(caught.value)


def test_fine_voxels_are_not_singular() -> None:
    """The determinant of a 20 micrometre grid is tiny, the grid is fine."""
    volume = Volume(ARRAY, "raw", affine=np.diag([0.02, 0.02, 0.02, 1.0]))
    assert volume.spacing == pytest.approx((0.02, 0.02, 0.02))


def test_fills_in_what_follows() -> None:
    """Spacing, the source grid and the way back."""
    affine = np.array([[0, 0, -2.0, 7], [0, 3, 0, 0], [4, 0, 0, 1], [0, 0, 0, 1]])
    volume = Volume(ARRAY, "HU", affine=affine)
    assert volume.spacing == (4, 3, 2)
    assert volume.source_shape == volume.shape == (4, 5, 6)
    np.testing.assert_array_equal(volume.source_affine, affine)
    np.testing.assert_array_equal(volume.to_source, np.eye(4))
    bare = Volume(ARRAY, "raw")
    assert bare.affine is None and bare.spacing is None and bare.source_affine is None


def test_regrid_composes() -> None:
    """A step's index map reaches affine, spacing and to_source, with and without an affine."""
    affine = np.array([[0, 0, -2.0, 7], [0, 3, 0, 0], [4, 0, 0, 1], [0, 0, 0, 1]])
    to_old = np.array([[0, 2.0, 0, 0.5], [-1, 0, 0, 4], [0, 0, 0.5, -1], [0, 0, 0, 1]])
    volume = Volume(ARRAY, "HU", affine=affine)
    once = volume.regrid(np.zeros((5, 2, 12)), None, to_old)
    twice = once.regrid(np.zeros((1, 1, 1)), None, to_old)
    point = np.array([1.0, 2.0, 3.0])
    old = transform(to_old, transform(to_old, point))
    np.testing.assert_allclose(transform(twice.to_source, point), old)
    np.testing.assert_allclose(transform(affine_of(twice), point), transform(affine, old))
    assert once.spacing == pytest.approx((3, 8, 1))
    assert twice.source_shape == (4, 5, 6)
    bare = Volume(ARRAY, "HU", spacing=(4, 3, 2)).regrid(np.zeros((5, 2, 12)), None, to_old)
    assert bare.spacing == pytest.approx((3, 8, 1))


def test_error_survives_a_worker() -> None:
    """Data workers send exceptions through pickle."""
    error = pickle.loads(pickle.dumps(DataError("a.nii", "is empty", "copy it again")))
    assert str(error) == "a.nii: is empty. Cure: copy it again."
    assert error.cure == "copy it again"
