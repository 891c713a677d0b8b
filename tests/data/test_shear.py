"""Sheared grids become rectangular, and what is found on them goes back to the file's own grid."""

from __future__ import annotations

import pathlib

import nibabel as nib
import numpy as np
import pytest

from data_pipelines import preprocess, readers, shear
from data_pipelines.oddities import oddities
from data_pipelines.volume import Volume, transform
from tests.data.scans import affine_of, dice, mask_of

SHAPE = (70, 60, 24)
RADIUS = 25.0  # mm
TILT = 3 * np.tan(np.radians(20))  # mm in y from slice to slice
SHEARS = {
    "gantry": {(1, 2): TILT},
    "rows": {(0, 1): 0.5},
    "all": {(0, 1): 0.2, (2, 0): 0.2, (1, 2): 1},
}


def _sheared(entries: dict[tuple[int, int], float]) -> Volume:
    """A ball of fat in air on a grid of 1.5 x 1.5 x 3 mm with these entries of the affine."""
    affine = np.diag([1.5, 1.5, 3, 1])
    for place, value in entries.items():
        affine[place] += value
    voxels = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    centre = transform(affine, (np.array(SHAPE) - 1) / 2)
    ball = np.linalg.norm(transform(affine, voxels) - centre, axis=-1) < RADIUS
    affine[:3, 3] = -centre
    array = np.where(ball, -100, -1000).astype(np.int16)
    return Volume(array, "HU", affine, mask=ball.astype(np.uint8))


@pytest.mark.parametrize("name", SHEARS)
def test_a_ball_stays_round(name: str) -> None:
    """In mm after the recipe, in the image and in the mask, and at its place."""
    volume = _sheared(SHEARS[name])
    assert shear.is_sheared(affine_of(volume), volume.shape)
    out = preprocess.ct((1.5, 1.5, 1.5))(volume)
    assert shear.degrees(affine_of(out)) < 1e-6
    for inside in (mask_of(out) > 0, out.array > -550):
        places = transform(affine_of(out), np.argwhere(inside))
        reach = np.abs(places).max(0)
        np.testing.assert_allclose(reach, RADIUS, atol=2.5)
        np.testing.assert_allclose(places.mean(0), 0, atol=0.8)
        size = inside.sum() * 1.5**3 / (4 / 3 * np.pi * RADIUS**3)
        assert size == pytest.approx(1, abs=0.05)


def test_slices_of_a_tilted_gantry_keep_their_pixels() -> None:
    """They are shifted along their rows only; a shift by whole pixels changes no value."""
    volume = _sheared({(1, 2): 3.0})  # two pixels per slice
    out = shear.straighten(volume)
    assert out.shape == (70, 60 + 2 * 23, 24)
    for number in range(24):
        first = 2 * number
        np.testing.assert_array_equal(
            out.array[:, first : first + 60, number], volume.array[:, :, number]
        )
    assert (out.array == -1024).sum() == out.array.size - volume.array.size


@pytest.mark.parametrize("name", SHEARS)
def test_a_mask_goes_back_to_the_sheared_grid(name: str) -> None:
    volume = _sheared(SHEARS[name])
    out = preprocess.ct((1.5, 1.5, 1.5))(volume)
    back = preprocess.put_back(mask_of(out), out)
    assert back.shape == SHAPE and dice(back, mask_of(volume)) > 0.96
    soft = preprocess.put_back(mask_of(out).astype(np.float32), out, order=1, fill=0)
    assert dice(soft > 0.5, mask_of(volume)) > 0.96


def test_boxes_enclose_their_place_on_the_other_grid() -> None:
    """A box on a sheared grid is the smallest one around all eight corners."""
    volume = _sheared({(1, 2): 3.0})
    out = shear.straighten(volume)
    box = np.array([[10.0, 40, 4, 20, 50, 8]])
    moved = preprocess.boxes_to_source(box, out)
    # A row of the new grid is two rows further per slice on the old one, from 3.5 to 7.5 slices.
    np.testing.assert_allclose(moved, [[10, 40 - 15, 4, 20, 50 - 7, 8]], atol=1e-9)
    again = preprocess.boxes_from_source(moved, out)[0]
    assert (again[:3] <= box[0, :3]).all() and (again[3:] >= box[0, 3:]).all()


@pytest.mark.parametrize("angle", [0.0, 0.01])
def test_rounding_in_a_header_is_no_shear(angle: float) -> None:
    """Less than half a voxel over the whole scan: the voxels keep their values."""
    volume = _sheared({(1, 2): 3 * np.tan(np.radians(angle))})
    assert shear.straighten(volume) is volume
    assert not any("sheared" in oddity for oddity in oddities(volume))


def test_inspect_names_the_shear(tmp_path: pathlib.Path) -> None:
    """From a NIfTI file, whose affine says it."""
    volume = _sheared(SHEARS["gantry"])
    nib.save(nib.Nifti1Image(volume.array, affine_of(volume)), tmp_path / "tilted.nii.gz")
    read = readers.read(tmp_path / "tilted.nii.gz", units="HU")
    (found,) = (oddity for oddity in oddities(read) if "sheared" in oddity)
    assert found.startswith("The grid is sheared by 20.0 degrees")
    np.testing.assert_allclose(affine_of(read), affine_of(volume), atol=1e-5)
