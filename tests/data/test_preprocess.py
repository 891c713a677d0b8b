"""Every step against a plain reference, and whole recipes there and back on real scans."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from data_pipelines import intensity, preprocess, readers, resample
from data_pipelines.errors import DataError
from data_pipelines.volume import Volume, corners, transform
from tests.data.scans import (
    affine_of,
    bounding_box,
    centroid_mm,
    dice,
    mask_of,
    oblique,
    only_label,
    random_volume,
)

SIGNED_PERMUTATIONS = [
    np.diag(signs)[list(order)]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((-1.0, 1.0), repeat=3)
]


# ---- Orientation and geometry


@pytest.mark.parametrize("directions", SIGNED_PERMUTATIONS)
def test_orientation_is_spl(directions: np.ndarray) -> None:
    """However the file lies: slices run up, rows to the back, columns to the left."""
    affine = np.eye(4)
    affine[:3, :3] = directions * (1.0, 2.0, 3.0)
    affine[:3, 3] = (-10, 20, 5)
    index = np.moveaxis(np.indices((3, 4, 5)), 0, -1)
    world = transform(affine, index)
    for axis, (sign, dimension) in enumerate(((1, 2), (-1, 1), (-1, 0))):
        # The image's value is its own position along S, P or L.
        out = preprocess.Orientation()(Volume(sign * world[..., dimension], "raw", affine=affine))
        assert (np.diff(out.array, axis=axis) > 0).all()
        across = tuple(a for a in range(3) if a != axis)
        assert np.ptp(out.array, axis=across).max() == 0


def test_orientation_needs_an_affine() -> None:
    """Left and right are never guessed."""
    with pytest.raises(DataError, match="orientation of the image"):
        preprocess.Orientation()(Volume(np.zeros((2, 2, 2)), "raw"))


STEPS = st.one_of(
    st.sampled_from(["SPL", "RAS", "LIA"]).map(preprocess.Orientation),
    st.permutations([0, 1, 2]).map(lambda axes: preprocess.Permute((axes[0], axes[1], axes[2]))),
    st.tuples(*[st.floats(0.7, 4.0)] * 3).map(preprocess.Spacing),
    st.tuples(*[st.integers(1, 9)] * 3).map(preprocess.Resize),
    st.tuples(*[st.integers(2, 12)] * 3).map(preprocess.ResizeWithPadOrCrop),
    st.builds(preprocess.CropForeground, threshold=st.just(-2000.0), margin=st.integers(0, 2)),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(STEPS, max_size=4),
    st.sampled_from(SIGNED_PERMUTATIONS),
    st.integers(0, 99),
    st.sampled_from([0.0, 0.0, 0.8]),
)
def test_world_is_the_same_by_both_ways(
    steps: list, directions: np.ndarray, seed: int, sheared: float
) -> None:
    """At every step a voxel's mm through the affine are its mm through the file's grid."""
    affine = np.eye(4)
    affine[:3, :3] = directions * (0.9, 2.5, 1.3)
    affine[:3, 1] += sheared * affine[:3, 0]
    affine[:3, 3] = (5, -40, 12)
    volume = oblique(random_volume((7, 5, 6), affine, seed))
    start = volume
    for step in steps:
        volume = step(volume)
        points = np.random.default_rng(seed).uniform(-3, 12, (20, 3))
        here = preprocess.points_to_world(points, volume)
        there = transform(affine_of(start), transform(volume.to_source, points))
        np.testing.assert_allclose(here, there, atol=1e-9)
        assert volume.mask is not None and mask_of(volume).shape == volume.shape
        assert volume.source_shape == start.shape
        np.testing.assert_allclose(
            volume.spacing, np.linalg.norm(affine_of(volume)[:3, :3], axis=0), rtol=1e-9
        )


def test_spacing_is_exact_and_centred() -> None:
    """The spacing is what was asked for; the centre of the field of view does not move."""
    volume = oblique(random_volume((11, 20, 7), np.diag([2.0, 0.7, 3.1, 1.0])))
    out = preprocess.Spacing((3.0, 1.5, 1.5))(volume)
    assert out.spacing == pytest.approx((3.0, 1.5, 1.5), rel=1e-12)
    assert out.shape == (8, 10, 15)  # rounded up: no voxel is lost
    before, after = (transform(affine_of(v), (np.array(v.shape) - 1) / 2) for v in (volume, out))
    np.testing.assert_allclose(before, after, atol=1e-9)


def test_a_full_mask_comes_back_whole_from_thin_scans() -> None:
    """Rounding down would lose the outermost slices of four 1 mm slices at 3 mm."""
    for shape in ((4, 4, 4), (7, 5, 11)):
        volume = random_volume(shape, np.diag([1.0, 1.0, 1.0, 1.0]))
        out = preprocess.Spacing((3.0, 3.0, 3.0))(volume)
        assert preprocess.put_back(np.ones(out.shape, np.uint8), out).all()


def test_spacing_leaves_equal_spacing_alone() -> None:
    """Header noise of float32 does not blur the scan."""
    volume = random_volume((4, 5, 6), np.diag([1.4999999, 1.5, 1.5000001, 1.0]))
    out = preprocess.Spacing((1.5, 1.5, 1.5))(volume)
    np.testing.assert_array_equal(out.array, volume.array)
    assert out.array.dtype == np.int16


# ---- Interpolation


@pytest.mark.parametrize("shape", [(4, 3, 5), (20, 17, 30), (9, 40, 2), (1, 1, 1)])
def test_resize_is_trilinear(shape: tuple[int, int, int]) -> None:
    """Against scipy in float64 at half-pixel centres with repeated edges."""
    volume = random_volume((9, 14, 11))
    out = preprocess.Resize(shape, anti_alias=False)(volume)
    grid = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(shape, volume.shape, strict=True)]
    points = np.stack(np.meshgrid(*grid, indexing="ij"))
    expected = ndimage.map_coordinates(
        volume.array.astype(np.float64), points, order=1, mode="nearest"
    )
    np.testing.assert_allclose(out.array, expected, atol=1e-3)
    index = tuple(np.floor(points + 0.5).astype(int).reshape(3, -1))
    np.testing.assert_array_equal(mask_of(out).ravel(), mask_of(volume)[index])


@pytest.mark.parametrize("anti_alias", [False, True])
def test_linear_against_float64_loops(anti_alias: bool) -> None:
    """The triangle filter, written out for one axis at a time."""
    array = np.random.default_rng(3).normal(size=(13, 6, 8))
    start, step, shape = (0.8, 0.25, -0.2), (2.7, 0.5, 1.3), (4, 11, 6)
    expected = array
    for axis in range(3):
        width = max(step[axis], 1.0) if anti_alias else 1.0
        rows = []
        for i in range(shape[axis]):
            position = start[axis] + step[axis] * i
            weight = [max(0.0, 1 - abs(j - position) / width) for j in range(array.shape[axis])]
            rows.append(np.average(expected, axis=axis, weights=weight))
        expected = np.stack(rows, axis)
    out = resample.linear(array, shape, start, step, anti_alias=anti_alias)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_linear_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounding the memory changes nothing, also for flipped and transposed views."""
    array = random_volume((12, 15, 18)).array[::-1].transpose(2, 0, 1)
    args = ((7, 20, 9), (0.4, -0.1, 0.2), (2.5, 0.6, 1.6))
    whole = resample.linear(array, *args, anti_alias=True)
    monkeypatch.setattr(resample, "_BLOCK", 3)
    np.testing.assert_allclose(resample.linear(array, *args, anti_alias=True), whole, atol=1e-3)


def test_anti_alias_removes_what_the_grid_cannot_hold() -> None:
    """Every other slice bright: a third of the slices must see the mean, not one phase of it."""
    stripes = np.tile(np.array([0.0, 1000.0])[:, None, None], (32, 4, 4))
    volume = Volume(stripes, "HU", affine=np.eye(4))
    blurred = preprocess.Resize((16, 4, 4))(volume).array[2:-2]
    aliased = preprocess.Resize((21, 4, 4), anti_alias=False)(volume).array[2:-2]
    np.testing.assert_allclose(blurred, 500, atol=1)
    assert np.ptp(aliased) > 300


def test_nearest_floor_is_torchs() -> None:
    """floor(i * in / out), up and down."""
    mask = mask_of(random_volume((7, 10, 12)))
    shape = (5, 23, 12)
    index = [np.arange(n) * m // n for n, m in zip(shape, mask.shape, strict=True)]
    np.testing.assert_array_equal(resample.nearest_floor(mask, shape), mask[np.ix_(*index)])


# ---- Crops, padding, intensities


def test_pad_and_crop() -> None:
    """Odd differences as in MONAI; padding has the given value, the mask 0 there."""
    volume = random_volume((5, 9, 4))
    out = preprocess.ResizeWithPadOrCrop((8, 4, 4), value=-1024)(volume)
    np.testing.assert_array_equal(out.array[1:6], volume.array[:, 2:6])
    assert (out.array[[0, 6, 7]] == -1024).all() and not mask_of(out)[[0, 6, 7]].any()
    np.testing.assert_array_equal(out.to_source[:3, 3], (-1, 2, 0))
    assert out.array.dtype == np.int16


def test_padding_unsigned_images_does_not_wrap() -> None:
    """-1024 in uint16 would be 64512."""
    volume = Volume(np.full((2, 2, 2), 7, np.uint16), "HU")
    assert preprocess.ResizeWithPadOrCrop((4, 2, 2), -1024)(volume).array.min() == -1024


def test_crop_foreground() -> None:
    """The box of what is above the threshold, and an error when nothing is."""
    array = np.zeros((6, 7, 8))
    array[2:4, 1:6, 5] = 3
    volume = Volume(array, "raw")
    out = preprocess.CropForeground()(volume)
    assert out.shape == (2, 5, 1) and out.to_source[:3, 3].tolist() == [2, 1, 5]
    assert preprocess.CropForeground(margin=2)(volume).shape == (6, 7, 5)
    with pytest.raises(DataError, match="empty or constant"):
        preprocess.CropForeground(5.0)(volume)


def test_center_crop() -> None:
    """It crops, and never pads."""
    volume = random_volume((10, 10, 10))
    np.testing.assert_array_equal(
        preprocess.center_crop(volume, (4, 6, 10)).array, volume.array[3:7, 2:8]
    )
    with pytest.raises(ValueError, match="does not fit"):
        preprocess.center_crop(volume, (11, 6, 6))


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
def test_percentiles(dtype: type) -> None:
    """As numpy in float64, for every dtype."""
    array: np.ndarray = (np.random.default_rng(0).random((6, 7, 8)) * 250).astype(dtype)
    expected = np.percentile(array.astype(np.float64), [0.5, 50, 99.5])
    np.testing.assert_allclose(intensity.percentiles(array, 0.5, 50, 99.5), expected, rtol=1e-12)


def test_scaling() -> None:
    """Values, dtype and units of every intensity step; a constant volume stays finite."""
    volume = random_volume((5, 5, 5))
    array = volume.array.astype(np.float64)
    scaled = preprocess.ScaleIntensity()(volume)
    np.testing.assert_allclose(scaled.array, (array - array.min()) / np.ptp(array), atol=1e-6)
    assert scaled.units == "unit" and scaled.array.dtype == np.float32
    window = preprocess.ScaleIntensityRange(-160, 240)(volume)
    np.testing.assert_allclose(window.array, ((array + 160) / 400).clip(0, 1), atol=1e-6)
    wide = preprocess.ScaleIntensityRange(-1000, 1000, -1, 1, clip=False)(volume)
    np.testing.assert_allclose(wide.array, array / 1000, atol=1e-6)
    assert (window.units, wide.units) == ("unit", "raw")
    clipped = preprocess.ClipIntensity(-1000, 1000)(volume)
    np.testing.assert_array_equal(clipped.array, array.clip(-1000, 1000))
    assert clipped.array.dtype == np.int16 and clipped.units == "HU"
    small = Volume(np.full((2, 2, 2), -5, np.int8), "HU")
    assert (preprocess.ClipIntensity(-1024, 3071)(small).array == -5).all()
    flat = Volume(np.full((2, 2, 2), 3.0), "raw")
    for step in (preprocess.ScaleIntensity(), preprocess.ScaleIntensityRangePercentiles()):
        np.testing.assert_array_equal(step(flat).array, 0)


@pytest.mark.parametrize("name", ["e3d", "ct"])
def test_hu_recipes_refuse_mr(name: str) -> None:
    """A window in HU means nothing on an MR."""
    volume = dataclasses.replace(random_volume((4, 4, 4)), units="raw")
    with pytest.raises(DataError, match="needs voxels in HU"):
        preprocess.RECIPES[name](volume)


# ---- Recipes


def test_recipes_are_data() -> None:
    """JSON there and back; the fingerprint sees every change and is the same on every machine."""
    for recipe in preprocess.RECIPES.values():
        again = preprocess.Recipe.from_json(recipe.to_json())
        assert again == recipe and again.fingerprint() == recipe.fingerprint()
    prints = {recipe.fingerprint() for recipe in preprocess.RECIPES.values()}
    assert len(prints) == len(preprocess.RECIPES)
    assert preprocess.ct((1.0, 1.0, 1.0)).fingerprint() not in prints
    assert preprocess.ct().fingerprint() == "a20ada068f0c4657"
    with pytest.raises(ValueError, match="unknown preprocessing step"):
        preprocess.Recipe.from_json([{"step": "Volume"}])
    with pytest.raises(ValueError, match="Spacing"):
        preprocess.Recipe.from_json([{"step": "Spacing", "pixdims": [1, 1, 1]}])


def test_e3d_is_air_outside(sample_scans: epath.Path) -> None:
    """Size, spacing, range and the padding of a scan that is smaller than the box."""
    volume = readers.read(sample_scans / "example_ct.nii.gz", units="HU")
    out = preprocess.RECIPES["e3d"](volume)
    assert out.shape == (128, 256, 256) and out.units == "HU"
    assert out.spacing == pytest.approx((3.0, 1.5, 1.5))
    assert out.array[0].max() == out.array[0].min() == -1000
    assert out.array.max() == 1000
    assert preprocess.center_crop(out, (112, 224, 224)).shape == (112, 224, 224)


def _chest(scans: epath.Path) -> Volume:
    """The sample CT with 41 organs, lying oblique in the patient, and its largest organ."""
    return oblique(
        readers.read(scans / "example_ct_sm.nii.gz", scans / "example_seg.nii.gz", units="HU")
    )


def _dicom(scans: epath.Path) -> Volume:
    """The DICOM series of 0.977 x 0.977 x 2 mm with 31 organs."""
    return readers.read(scans / "example_ct_dicom", scans / "example_seg_dicom.nii.gz")


@pytest.fixture(scope="module", params=[_chest, _dicom], ids=["oblique", "anisotropic"])
def scan(request: pytest.FixtureRequest, sample_scans: epath.Path) -> Volume:
    """A real scan whose mask is one large organ away from the border."""
    load: Callable[[epath.Path], Volume] = request.param
    volume = load(sample_scans)
    inside = mask_of(volume)[:, 8:-8, 8:-8] if load is _dicom else mask_of(volume)
    return only_label(volume, int(np.bincount(inside[inside > 0]).argmax()))


def scan_spacing(scan: Volume) -> np.ndarray:
    """mm along the axes of the file."""
    return np.linalg.norm(affine_of(scan)[:3, :3], axis=0)


@pytest.mark.parametrize("name", ["m3d", "e3d", "ct"])
def test_mask_comes_back(scan: Volume, name: str) -> None:
    """Through a whole recipe and back an organ lands where it came from."""
    out = preprocess.RECIPES[name](scan)
    back = preprocess.put_back(mask_of(out), out)
    assert back.shape == scan.shape and back.dtype == np.uint8
    assert dice(back, mask_of(scan)) > 0.93
    # Nearest neighbour moves an edge by up to half a voxel of the coarser grid, on each axis.
    coarser = np.maximum(np.abs(out.to_source[:3, :3]).max(1), 1) * scan_spacing(scan)
    to_voxels = np.linalg.inv(affine_of(scan))[:3, :3]
    for there, affine in ((back, affine_of(scan)), (mask_of(out), affine_of(out))):
        apart = centroid_mm(there, affine) - centroid_mm(mask_of(scan), affine_of(scan))
        assert (np.abs(to_voxels @ apart) * scan_spacing(scan) < coarser / 2).all()


@pytest.mark.parametrize("name", ["m3d", "e3d", "ct"])
def test_box_comes_back(scan: Volume, name: str) -> None:
    """The faces of a block return to where they were, within half a voxel of the coarser grid."""
    block = np.zeros_like(mask_of(scan))
    low, high = np.array(scan.shape) // 3, np.array(scan.shape) * 2 // 3
    block[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1
    out = preprocess.RECIPES[name](dataclasses.replace(scan, mask=block))
    box = preprocess.boxes_to_source(bounding_box(mask_of(out)), out)
    step = np.abs(out.to_source[:3, :3]).max(1)
    assert (np.abs(box - np.concatenate([low, high])) <= np.tile(step, 2) / 2 + 0.5).all()


@pytest.mark.parametrize("name", ["m3d", "e3d", "ct"])
def test_linear_way_back(scan: Volume, name: str) -> None:
    """Probabilities go back linearly; outside of the crop there is the fill value."""
    out = preprocess.RECIPES[name](scan)
    ones = preprocess.put_back(np.ones(out.shape, np.float32), out, order=1, fill=-1)
    assert set(np.unique(ones.round(5))) <= {-1.0, 1.0}
    soft = preprocess.put_back(mask_of(out).astype(np.float32), out, order=1)
    assert dice(soft > 0.5, mask_of(scan)) > 0.93
    image = preprocess.put_back(out.array, out, order=1, fill=np.nan)
    inside = ~np.isnan(image)
    assert np.corrcoef(image[inside], scan.array[inside])[0, 1] > 0.97


def test_put_back_refuses_other_grids(scan: Volume) -> None:
    """A prediction at another size would land somewhere plausible and wrong."""
    out = preprocess.Orientation()(scan)
    with pytest.raises(ValueError, match="not on the volume's grid"):
        preprocess.put_back(np.zeros((2, 2, 2)), out)
    with pytest.raises(ValueError, match="order 3"):
        preprocess.put_back(out.array, out, order=3)


def test_boxes_in_millimetres(scan: Volume) -> None:
    """The faces of the box of a single voxel lie half a voxel around its centre."""
    out = preprocess.RECIPES["ct"](scan)
    found = preprocess.boxes_to_world(np.array([[3, 4, 5, 4, 5, 6.0]]), out)
    assert found.shape == (1, 8, 3)
    offset = corners((2, 2, 2)) - 0.5
    expected = preprocess.points_to_world(np.array([3, 4, 5]) + offset, out)
    np.testing.assert_allclose(found[0], expected, atol=1e-9)
    np.testing.assert_allclose(
        np.linalg.norm(found[0] - found[0].mean(0), axis=1), np.sqrt(27) / 2, rtol=1e-6
    )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_saved_mask_lies_on_the_scan(scan: Volume, tmp_path: epath.Path, suffix: str) -> None:
    """What is saved is read back by nibabel and by our own reader as a mask of the scan."""
    out = preprocess.RECIPES["ct"](scan)
    back = preprocess.put_back(mask_of(out), out)
    path = epath.Path(tmp_path) / f"mask{suffix}"
    preprocess.save_like(back, path, out)
    saved: Any = nib.load(path)
    np.testing.assert_allclose(saved.affine, affine_of(scan), atol=1e-3)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), back)
    np.testing.assert_array_equal(readers.read_mask(path, like=scan), back)
    with pytest.raises(ValueError, match="put_back"):
        preprocess.save_like(mask_of(out), path, out)
    with pytest.raises(ValueError, match=r"\.nii"):
        preprocess.save_like(back, path.with_suffix(".png"), out)


def test_without_an_affine_there_are_no_millimetres(tmp_path: epath.Path) -> None:
    """A stack of pictures has no place in the patient."""
    volume = preprocess.m3d_cap((2, 4, 4))(Volume(random_volume((3, 9, 9)).array, "raw"))
    back = preprocess.put_back(volume.array, volume, order=1)
    assert back.shape == (3, 9, 9)
    with pytest.raises(DataError, match="where its voxels are"):
        preprocess.points_to_world(np.zeros(3), volume)
    with pytest.raises(DataError, match="where its voxels are"):
        preprocess.save_like(back, tmp_path / "a.nii", volume)
