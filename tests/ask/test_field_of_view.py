"""Fields of view are equal to the crops of training, and boxes are mapped back to the scan."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import readers
from data_pipelines.boxes import box_to_text, mask_to_box
from data_pipelines.crops import Crop, RandomCrop
from data_pipelines.datasets import open_dataset
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.fields.image import Image
from data_pipelines.pipeline import Data, Source
from data_pipelines.placement import Whole
from data_pipelines.preprocess import Recipe, as_is, ct
from data_pipelines.volume import Volume
from m3djax.ask.describe import describe
from m3djax.ask.field_of_view import At, FieldOfView
from m3djax.ask.places import place_boxes
from tests.ask.conftest import AFFINE, ORGAN


@pytest.fixture(scope="module")
def volume(scan: Path) -> Volume:
    return readers.read(scan, units="HU")


def part(
    volume: Volume, size: tuple[int, int, int], at: str = "centre", zoom: float = 1
) -> FieldOfView:
    return FieldOfView.of(volume, Data((Source("x"),), size), ct(), At.read(at), Crop(zoom))


def test_a_whole_volume_is_what_training_reads(dataset: str, volume: Volume) -> None:
    [record] = [*open_dataset(dataset, "train")]
    crop = RandomCrop(record["image"].shape, (Crop(),), {"image": Image()})
    sample = crop(record, np.random.default_rng(0))
    seen = part(volume, record["image"].shape)
    np.testing.assert_array_equal(seen.image, sample["image"])
    assert (seen.scale, seen.offset) == (sample["scale"], sample["offset"])
    np.testing.assert_allclose(seen.seen.affine, record["affine"])
    assert seen.share() == pytest.approx(1)


@pytest.mark.parametrize("zoom", [1, 3])
def test_a_crop_is_what_training_cuts_there(dataset: str, volume: Volume, zoom: float) -> None:
    """Windows of an odd number of voxels have a middle voxel, so that both can be cut around it."""
    [record] = [*open_dataset(dataset, "train")]
    size = (7, 7, 9)
    sample = RandomCrop(size, (Crop(zoom),), {"image": Image()})(
        record, np.random.default_rng(3), train=False
    )
    to_file = ct()(volume).to_source
    middle = to_file[:3, :3] @ sample["place"] + to_file[:3, 3]
    seen = part(volume, size, ",".join(f"{x:.3f}" for x in middle), zoom)
    np.testing.assert_array_equal(seen.image, sample["image"])


def test_a_run_trained_on_whole_volumes_sees_whole_scans(dataset: str, volume: Volume) -> None:
    [record] = [*open_dataset(dataset, "train")]
    size, crop = (12, 10, 14), Crop(at=Whole())
    sample = RandomCrop(size, (crop,), {"image": Image()})(record, np.random.default_rng(0))
    data = Data((Source("x"),), size)
    for at in ("centre", "whole"):
        seen = FieldOfView.of(volume, data, ct(), At.read(at), crop)
        np.testing.assert_array_equal(seen.image, sample["image"])
        assert "100% of the scan, cut as in training" in describe(seen)[1]
    cut = FieldOfView.of(volume, data, ct(), At.read("14,15,12"), crop)
    assert cut.share() < 0.2


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(
    "size, at, zoom, tolerance",
    [
        ((24, 24, 32), "centre", 1, 0.01),  # a part of the scan
        ((40, 40, 40), "centre", 1, 0.02),  # more than the scan
        ((14, 14, 20), "14,15,12", 1, 0.01),
        ((30, 24, 36), "whole", 1, 0.02),
        ((12, 12, 16), "centre", 2, 1.05),  # two voxels become one
    ],
)
def test_boxes_find_back(
    volume: Volume,
    size: tuple[int, int, int],
    at: str,
    zoom: float,
    tolerance: float,
    released: bool,
) -> None:
    looked = part(volume, size, at, zoom)
    box = mask_to_box(looked.seen.array > 220, released=released)
    # Three decimals of a part of the volume are up to half a thousandth of it off.
    boxes = place_boxes(f"It is at {box_to_text(box)}.", looked, released=released)
    [place] = boxes.placed
    wanted = np.array([[s.start for s in ORGAN], [s.stop for s in ORGAN]], float)
    slack = tolerance + 0.0005 * max(size) * zoom
    np.testing.assert_allclose(place.voxels, wanted.ravel(), atol=slack)
    faces = wanted - 0.5
    points = np.array([[faces[i, 0], faces[j, 1], faces[k, 2]] for i in (0, 1) for j in (0, 1)
                       for k in (0, 1)])  # fmt: skip
    millimetres = points @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    assert place.mm is not None
    assert np.abs(place.mm[:3] - millimetres.min(0)).max() < 4 * slack
    assert np.abs(place.mm[3:] - millimetres.max(0)).max() < 4 * slack


def test_places_are_named_by_voxel_and_by_millimetres(volume: Volume) -> None:
    voxel = np.array([9, 13, 10])
    point = AFFINE[:3, :3] @ voxel + AFFINE[:3, 3]
    named = ",".join(f"{x:.3f}" for x in point)
    one, two = part(volume, (7, 7, 7), "9,13,10"), part(volume, (7, 7, 7), f"{named}mm")
    np.testing.assert_array_equal(one.image, two.image)
    assert one.frame().tolist() == [6, 10, 7, 13, 17, 14]
    # At the edge the crop moves into the scan, as no crop of training leaves a larger scan.
    assert part(volume, (6, 6, 6), "0,0,0").frame().tolist() == [0, 0, 0, 6, 6, 6]
    for at in ("36,2,2", "1000,0,0mm"):
        with pytest.raises(ConfigError, match=r"is not in .*patient.*Cure: a place within them"):
            part(volume, (6, 6, 6), at)
    with pytest.raises(ConfigError, match="is no place. Cure: centre, whole, a voxel"):
        At.read("left lobe")


def test_units_must_be_those_of_the_run(scan: Path) -> None:
    raw, data = readers.read(scan), Data((Source("x"),), (8, 8, 8))
    for recipe in (ct(), as_is()):
        with pytest.raises(DataError, match="patient.*--units HU"):
            FieldOfView.of(raw, data, recipe, At(), Crop())


def test_a_scan_without_a_place_has_no_millimetres(volume: Volume) -> None:
    bare = Volume(volume.array, units="HU", source="slices")
    data = Data((Source("x"),), (20, 20, 20))
    looked = FieldOfView.of(bare, data, Recipe(()), At(), Crop())
    [place] = place_boxes("[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]", looked).placed
    assert place.mm is None and "no millimetres" in str(place)
    with pytest.raises(DataError, match="slices: .*Cure: give --at a voxel"):
        FieldOfView.of(bare, data, Recipe(()), At.read("1,2,3mm"), Crop())


def test_boxes_that_cannot_be_read_are_counted(volume: Volume) -> None:
    looked = part(volume, (40, 40, 40))
    bad = (
        "[0.1, 0.2, 0.3, 0.4, 0.5]",  # five
        "[0.1, 0.2, 0.3, 0.4, 0.5, 1.6]",  # leaves the volume
        "[0.5, 0.2, 0.3, 0.4, 0.5, 0.6]",  # ends before it starts
        "[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]",  # nothing is in it
        "[0.1, 0.2, 0.3, 0.4",  # cut off
        "[a, 0.2, 0.3, 0.4, 0.5, 0.6]",
        "0.1, 0.2, 0.3, 0.4, 0.5, 0.6",
    )
    for text in bad:
        boxes = place_boxes(f"See {text}", looked)
        assert boxes.unreadable == (text,) and not boxes.placed
    both = place_boxes(f"{bad[0]} and [0.2, 0.2, 0.3, 0.4, 0.5, 0.6][SEG] or {bad[6]}", looked)
    assert len(both.placed) == 1 and both.unreadable == (bad[0], bad[6])
    assert place_boxes("Yes [SEG], 1.5 cm, 3, 4, 5 and 6 [sic].", looked) == place_boxes("", looked)


def test_a_box_in_the_padding_is_not_in_the_scan(volume: Volume) -> None:
    looked = part(dataclasses.replace(volume), (80, 40, 40))
    boxes = place_boxes("[0, 0, 0, 0.1, 0.1, 0.1]", looked)
    assert not boxes.placed and len(boxes.outside) == 1


def test_what_lies_beyond_the_scan_is_told(volume: Volume) -> None:
    """The scan has 30 voxels from inferior to superior, 24 to the back and 36 to the left."""
    inside, twice = part(volume, (30, 24, 36)), part(volume, (60, 24, 36))
    assert inside.beyond() == pytest.approx(0) and twice.beyond() == pytest.approx(0.5)
    assert "beyond" not in describe(inside)[1]
    assert "50% of them beyond the scan and empty" in describe(twice)[1]
    assert "oblique" in describe(inside)[0]
    upright = dataclasses.replace(volume, affine=np.diag([3.0, 3, 3, 1]), source_affine=None)
    assert "oblique" not in describe(part(upright, (30, 24, 36)))[0]
