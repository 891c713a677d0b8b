"""Points and boxes keep their places through tables, records, crops and texts."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import boxes, spatial
from data_pipelines.datasets import points
from data_pipelines.datasets.points import PointList, read_cell, read_column
from data_pipelines.errors import DataError
from data_pipelines.volume import Volume, transform

AFFINE = np.array([[0, -2.0, 0, 10], [0, 0, 1.5, -20], [3.0, 0, 0, 5], [0, 0, 0, 1]])
"""D runs upwards, H to the left and W forwards; voxels of 3 x 2 x 1.5 mm."""
STEPS = [
    spatial.Orientation("RAS"),
    spatial.Orientation("SPL"),
    spatial.Permute((2, 0, 1)),
    spatial.Spacing((1.0, 2.5, 4.0)),
    spatial.Resize((5, 9, 4)),
    spatial.ResizeWithPadOrCrop((12, 3, 8), -1024),
]
NUMBERS = st.floats(-50, 50).map(lambda x: round(x, 3))
PLACES = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=5)


def volume(affine: np.ndarray | None = AFFINE) -> Volume:
    array = np.arange(7 * 6 * 8, dtype=np.float32).reshape(7, 6, 8)
    return Volume(array, "HU", affine, source="scan.nii.gz")


@given(PLACES, st.lists(st.sampled_from(STEPS), max_size=3))
def test_points_mean_the_same_place_in_every_space_and_on_every_grid(
    places: list[tuple[float, ...]], steps: list
) -> None:
    scan = volume()
    for step in steps:
        scan = step(scan)
    ras = np.array(places)
    expected = PointList("a", "ras", tuple(places)).on(scan)
    np.testing.assert_allclose(transform(scan.affine, expected), ras, atol=1e-6)
    lps = PointList("a", "lps", tuple(map(tuple, (ras * (-1, -1, 1)).tolist())))
    np.testing.assert_allclose(lps.on(scan), expected, atol=1e-6)
    voxels = transform(np.linalg.inv(AFFINE), ras)
    voxel = PointList("a", "voxel", tuple(map(tuple, voxels.tolist())))
    np.testing.assert_allclose(voxel.on(scan), expected, atol=1e-6)


@given(PLACES)
def test_points_of_a_cell_come_back_from_the_record(places: list[tuple[float, ...]]) -> None:
    cell = "; ".join(" ".join(map(str, place)) for place in places)
    (one, other) = (read_cell(f"points:{name}:voxel", cell) for name in ("a", "b"))
    assert one == PointList("a", "voxel", tuple(places))
    record = {"points": points.to_text((one, other), volume())}
    assert points.names(record) == ["a", "b"]
    for name in ("a", "b"):
        np.testing.assert_allclose(points.of_record(record, name), places, atol=6e-4)
    assert points.of_record(record, "c").shape == (0, 3)


def test_a_record_without_points() -> None:
    assert points.to_text((), volume()) == ""
    assert points.names({"points": ""}) == []
    assert points.of_record({"points": ""}, "a").shape == (0, 3)
    assert json.loads(points.to_text((PointList("a", "ras", ()),), volume())) == {"a": []}


@pytest.mark.parametrize("column", ["points:a", "points::ras", "points:a:mm", "points:a:ras:x"])
def test_columns_that_do_not_name_points_and_space(column: str) -> None:
    with pytest.raises(ValueError, match="the column must be points:NAME:SPACE, SPACE one of"):
        read_column(column)


@pytest.mark.parametrize("cell", ["1 2", "1 2 3 4", "1 2 inf", "nan 2 3", "1 2 3; 4"])
def test_cells_that_are_not_points(cell: str) -> None:
    with pytest.raises(ValueError, match="every point must have three finite numbers"):
        read_cell("points:a:ras", cell)


def test_millimetres_need_an_affine() -> None:
    for space in ("ras", "lps"):
        with pytest.raises(DataError, match=r"its points 'a' are in millimetres.*points:a:voxel"):
            PointList("a", space, ((1, 2, 3),)).on(volume(None))
    found = PointList("a", "voxel", ((1, 2, 3),)).on(volume(None))
    np.testing.assert_array_equal(found, [[1, 2, 3]])


SPANS = st.tuples(st.integers(0, 7), st.integers(0, 7)).map(sorted)


@given(st.tuples(SPANS, SPANS, SPANS))
def test_a_box_of_a_mask_is_its_smallest_one(spans: tuple[list[int], ...]) -> None:
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[tuple(slice(low, high + 1) for low, high in spans)] = 3
    low, high = np.array(spans).T
    box = boxes.mask_to_box(mask)
    np.testing.assert_array_equal(box, np.concatenate([low, high + 1]) / 8)
    released = boxes.mask_to_box(mask, released=True)
    np.testing.assert_array_equal(released, np.concatenate([low, high]) / 8)
    for text in (boxes.box_to_text(box), boxes.box_to_short_text(box)):
        np.testing.assert_array_equal(boxes.read_box(f"It is at {text}."), box)
    assert boxes.iou(box, box) == pytest.approx(1)
    assert len(boxes.box_to_short_text(box)) <= len(boxes.box_to_text(box))


def test_the_box_of_nothing() -> None:
    assert boxes.mask_to_box(np.zeros((2, 3, 4))).tolist() == [0] * 6
    assert boxes.iou(np.zeros(6), np.zeros(6)) == 0


BOX = st.tuples(*[st.tuples(st.integers(0, 6), st.integers(1, 4))] * 3)


@given(BOX, BOX)
def test_iou_counts_voxels(one: tuple, other: tuple) -> None:
    """With boxes of whole voxels, intersection and union are numbers of voxels."""
    masks = []
    for box in (one, other):
        mask = np.zeros((10, 10, 10), bool)
        mask[tuple(slice(low, low + side) for low, side in box)] = True
        masks.append(mask)
    first, second = (boxes.mask_to_box(mask) for mask in masks)
    expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert boxes.iou(first, second) == pytest.approx(expected)
    assert boxes.iou(second, first) == pytest.approx(expected)
    assert boxes.iou(first, second, released=True) <= expected + 1e-5


@given(st.sampled_from(list(itertools.permutations("SPL"))), st.integers(0, 7))
def test_an_orientation_and_back_is_the_same_volume(codes: tuple[str, ...], flips: int) -> None:
    opposite = dict(zip("SPL", "IAR", strict=True))
    axcodes = "".join(opposite[c] if flips >> n & 1 else c for n, c in enumerate(codes))
    scan = spatial.Orientation("SPL")(volume())
    there = spatial.Orientation(axcodes)(scan)
    back = spatial.Orientation("SPL")(there)
    np.testing.assert_array_equal(back.array, scan.array)
    np.testing.assert_allclose(back.affine, scan.affine, atol=1e-9)
    np.testing.assert_allclose(back.to_source, scan.to_source, atol=1e-9)
    assert sorted(there.array.ravel().tolist()) == sorted(scan.array.ravel().tolist())


@given(st.permutations(range(3)))
def test_a_permutation_moves_axes_spacing_and_affine_together(axes: list[int]) -> None:
    scan = volume()
    moved = spatial.Permute((axes[0], axes[1], axes[2]))(scan)
    np.testing.assert_array_equal(moved.array, scan.array.transpose(axes))
    assert scan.spacing is not None and moved.spacing is not None
    assert moved.spacing == pytest.approx([scan.spacing[axis] for axis in axes])
    np.testing.assert_allclose(moved.source_affine @ moved.to_source, moved.affine, atol=1e-9)


@given(st.tuples(*[st.integers(-4, 3)] * 3), st.tuples(*[st.integers(4, 10)] * 3))
def test_a_crop_pads_and_keeps_places(start: tuple[int, ...], stop: tuple[int, ...]) -> None:
    scan = volume()
    out = spatial.crop(scan, start, stop, -1.0)
    assert out.shape == tuple(b - a for a, b in zip(start, stop, strict=True))
    there = transform(out.to_source, np.stack(np.indices(out.shape), -1)).astype(int)
    inside = ((there >= 0) & (there < scan.shape)).all(-1)
    np.testing.assert_array_equal(out.array[inside], scan.array[tuple(there[inside].T)])
    assert (out.array[~inside] == -1).all()
