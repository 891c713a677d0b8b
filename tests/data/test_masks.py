"""Masks of every kind are read on the grid of their image, or refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers.image import read_image
from data_pipelines.readers.masks import organ_files, read_mask, structures_in
from data_pipelines.volume import Volume, transform
from tests.data.dicom_files import SHAPE, SLICE_MM, ct_slice, real_slices, write
from tests.data.scans import affine_of, dice
from tests.data.structure_files import write_contours, write_rtstruct, write_seg

LIVER, SPLEEN = 5, 1
NAMES = ["Liver", "left  SPLEEN"]


@dataclasses.dataclass(frozen=True)
class Scan:
    """The real sample series with two of its organs.

    Attributes:
      slices: its DICOM files.
      image: as read.
      labels: (slices, rows, columns) 1 liver, 2 spleen.
    """

    slices: list[pydicom.Dataset]
    image: Volume
    labels: np.ndarray


@pytest.fixture(scope="module")
def scan(sample_scans: epath.Path) -> Scan:
    """Read once: the tests only look at it."""
    image = read_image(sample_scans / "example_ct_dicom")
    organs = read_mask(sample_scans / "example_seg_dicom.nii.gz", like=image)
    labels = (organs == LIVER) * np.uint8(1) + (organs == SPLEEN) * np.uint8(2)
    return Scan(real_slices(sample_scans / "example_ct_dicom"), image, labels)


@pytest.fixture
def small(tmp_path: pathlib.Path) -> Scan:
    """A small series and two boxes in it."""
    slices = [ct_slice(index, SliceThickness=SLICE_MM) for index in range(SHAPE[0])]
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 1:4, 1:3] = 1
    labels[4, 2:4, 1:3] = 2
    return Scan(slices, read_image(write(tmp_path / "ct", slices)), labels)


def _as_nifti(image: Volume, folder: pathlib.Path) -> Volume:
    """The same image with axes (x, y, z) from a file of another format."""
    path = folder / "canonical.nii"
    nib.save(nib.as_closest_canonical(nib.Nifti1Image(image.array, image.affine)), path)
    return read_image(path)


def _turned(labels: np.ndarray, image: Volume) -> np.ndarray:
    stored = nib.Nifti1Image(labels.astype(np.uint8), image.affine)
    turned = nib.as_closest_canonical(stored)
    return np.asarray(turned.dataobj)


# ---- DICOM SEG


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_seg_equals_its_mask(scan: Scan, tmp_path: pathlib.Path, kind: str) -> None:
    """Voxel for voxel, whatever the order of the names and of the image's axes."""
    path = write_seg(tmp_path / "seg.dcm", scan.slices, scan.labels, NAMES, kind)
    assert structures_in(path, ["liver", "Kidney", "LEFT spleen"]) == ("liver", "LEFT spleen")
    np.testing.assert_array_equal(
        read_mask(path, scan.image, ["LIVER", "Left Spleen"]), scan.labels
    )
    (tmp_path / "nifti").mkdir()
    spleen = read_mask(path, _as_nifti(scan.image, tmp_path), ["left spleen"])
    np.testing.assert_array_equal(spleen, _turned(scan.labels == 2, scan.image))


@pytest.mark.parametrize("numbers", [(1, 255), (1, 257), (44, 300), (256, 65535)])
def test_seg_label_map_of_any_numbers(
    small: Scan, tmp_path: pathlib.Path, numbers: tuple[int, int]
) -> None:
    """Numbers above 255 are 16-bit values of their own, not values modulo 256."""
    pixels = np.array([0, *numbers], np.uint16)[small.labels]
    path = write_seg(tmp_path / "s.dcm", small.slices, pixels, NAMES, "LABELMAP", numbers=numbers)
    np.testing.assert_array_equal(read_mask(path, small.image, NAMES), small.labels)
    np.testing.assert_array_equal(read_mask(path, small.image, NAMES[1:]), small.labels == 2)


def test_fractional_seg_counts_from_one_half(small: Scan, tmp_path: pathlib.Path) -> None:
    """Occupied by half or more is inside."""
    fraction = np.where(small.labels == 1, 0.6, np.where(small.labels == 2, 0.4, 0.0))
    path = write_seg(tmp_path / "seg.dcm", small.slices, fraction, ["organ"], "FRACTIONAL")
    np.testing.assert_array_equal(read_mask(path, small.image, ["organ"]), small.labels == 1)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_seg_of_some_slices(small: Scan, tmp_path: pathlib.Path, kind: str) -> None:
    """Segmentations leave out empty slices, or cover a part of the scan; one slice is enough."""
    part = write_seg(tmp_path / "a.dcm", small.slices[2:5], small.labels[2:5], NAMES, kind)
    expected = np.where(np.arange(6)[:, None, None] >= 2, small.labels, 0)
    np.testing.assert_array_equal(read_mask(part, small.image, NAMES), expected)
    one = np.zeros_like(small.labels)
    one[[0, 3]] = 1
    for index in (0, 3):
        only = np.where(np.arange(6)[:, None, None] == index, one, 0)
        path = write_seg(tmp_path / "b.dcm", small.slices, only, ["a"], kind)
        np.testing.assert_array_equal(read_mask(path, small.image, ["a"]), only)
    path = write_seg(tmp_path / "c.dcm", small.slices, one, ["a"], kind)
    np.testing.assert_array_equal(read_mask(path, small.image, ["a"]), one)


def test_overlap_goes_to_the_later_name(small: Scan, tmp_path: pathlib.Path) -> None:
    """In a SEG whose segments overlap."""
    both = np.stack([small.labels > 0, small.labels == 2], axis=-1)
    path = write_seg(tmp_path / "seg.dcm", small.slices, both, NAMES)
    np.testing.assert_array_equal(read_mask(path, small.image, NAMES), small.labels)
    only = read_mask(path, small.image, NAMES[::-1])
    np.testing.assert_array_equal(only, np.where(small.labels > 0, 2, 0))


@pytest.mark.parametrize(
    ("fields", "names", "problem"),
    [
        ({}, [], "holds 2 structures, and no name was given"),
        ({}, ["kidney"], "no structures are called 'kidney'"),
        ({}, [f"o{i}" for i in range(255)], "255 structures for 254"),
        ({"FrameOfReferenceUID": "9.9.9"}, NAMES, "frame of reference is not the image's"),
        ({"Rows": 60000, "Columns": 60000}, NAMES, "claims .* pixels"),
        ({"SegmentSequence": None}, NAMES, "no structures are called"),
        ({"SegmentationType": "DOE"}, NAMES, "not a readable DICOM segmentation"),
        ({"PixelData": b"\0\0"}, NAMES, "not a readable DICOM segmentation"),
        ({"PerFrameFunctionalGroupsSequence": None}, NAMES, "not a readable DICOM segment"),
    ],
)
def test_refuses_seg(
    small: Scan, tmp_path: pathlib.Path, fields: dict[str, Any], names: list[str], problem: str
) -> None:
    """The error names the file and what it lacks, never what its structures are called."""
    path = write_seg(tmp_path / "seg.dcm", small.slices, small.labels, NAMES, **fields)
    with pytest.raises(DataError, match=problem) as caught:
        read_mask(path, small.image, names)
    assert caught.value.path == str(path)
    assert not any(text in str(caught.value) for text in ("DOE", "Doe", "4711", "9.9.9"))


@pytest.mark.parametrize("move", [[0.35, 0, 0], [0, 0, 2.5 * 4], [0, 0.8 * 2, 0]])
def test_refuses_seg_of_another_grid(
    small: Scan, tmp_path: pathlib.Path, move: list[float]
) -> None:
    """Half a voxel away, or beyond the image's edge."""
    for dataset in small.slices:
        dataset.ImagePositionPatient = list(np.array(dataset.ImagePositionPatient) + move)
    path = write_seg(tmp_path / "seg.dcm", small.slices, small.labels, NAMES)
    with pytest.raises(DataError, match="not on the image's grid"):
        read_mask(path, small.image, NAMES)


def test_refuses_empty_seg(small: Scan, tmp_path: pathlib.Path) -> None:
    """Training with it would learn nothing, without an error."""
    path = write_seg(tmp_path / "seg.dcm", small.slices, np.zeros_like(small.labels), NAMES)
    with pytest.raises(DataError, match="segments are empty"):
        read_mask(path, small.image, NAMES)


# ---- RTSTRUCT


def test_rtstruct_overlaps_its_mask(scan: Scan, tmp_path: pathlib.Path) -> None:
    """Organs come back from their outlines, also on an image with other axes."""
    masks = {"Liver": scan.labels == 1, "Spleen": scan.labels == 2, "empty": scan.labels == 9}
    path = write_rtstruct(tmp_path / "rs.dcm", scan.slices, masks)
    assert structures_in(path, ["spleen", "empty", "liver"]) == ("spleen", "liver")
    mask = read_mask(path, scan.image, ["liver", "spleen"])
    assert dice(mask == 1, scan.labels == 1) > 0.99 and dice(mask == 2, scan.labels == 2) > 0.99
    again = read_mask(path, _as_nifti(scan.image, tmp_path), ["liver", "spleen"])
    assert dice(again, _turned(mask, scan.image)) > 0.999


def _box(image: Volume, d: float, low: float, high: float) -> np.ndarray:
    """A square contour (4, 3) in LPS mm on slice d, rows and columns low..high."""
    voxels = [(d, low, low), (d, low, high), (d, high, high), (d, high, low)]
    return transform(affine_of(image), np.array(voxels)) * (-1, -1, 1)


@pytest.fixture
def cube(tmp_path: pathlib.Path) -> Volume:
    """An image of 6 x 12 x 12 voxels, 2 x 1 x 1 mm."""
    affine = np.array([[0, 0, -1, 40.0], [0, -1, 0, 30], [2, 0, 0, -7], [0, 0, 0, 1]])
    return Volume(np.zeros((6, 12, 12), np.int16), "HU", affine)


def test_holes(cube: Volume, tmp_path: pathlib.Path) -> None:
    """A contour inside another one, or joined to it by a keyhole, cuts a hole."""
    outer, inner = _box(cube, 2, 1.5, 9.5), _box(cube, 2, 3.5, 6.5)
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    expected = np.zeros((12, 12), np.uint8)
    expected[2:10, 2:10] = 1
    expected[4:7, 4:7] = 0
    for contours in ([outer, inner], [keyhole]):
        path = write_contours(tmp_path / "rs.dcm", "1.2", {"organ": contours})
        mask = read_mask(path, cube, ["organ"])
        np.testing.assert_array_equal(mask[2], expected)
        assert mask.sum() == expected.sum()


def _through_centres(image: Volume, d: int, mask: np.ndarray) -> list[np.ndarray]:
    """Contours of a mask as rt-utils draws them: through centres, each seen from a voxel inside."""
    shifts = [np.roll(mask == 0, s, a) for a in (0, 1) for s in (-1, 1)]
    edge = np.argwhere((mask > 0) & np.any(shifts, axis=0))
    centre = np.argwhere(mask >= 0).mean(0)
    angle = np.arctan2(*(edge - centre).T)
    radius = np.linalg.norm(edge - centre, axis=1)
    hollow = not mask[tuple(centre.astype(int))]
    rings = [radius > radius.mean(), radius <= radius.mean()] if hollow else [radius > 0]
    found = []
    for ring in rings:
        points = edge[ring][np.argsort(angle[ring])]
        voxels = np.column_stack([np.full(len(points), d), points])
        found.append(transform(affine_of(image), voxels) * (-1, -1, 1))
    return found


@pytest.mark.parametrize("hole", [0, 4.2])
def test_contours_through_voxel_centres(hole: float, tmp_path: pathlib.Path) -> None:
    """A disc and a ring, drawn through the centres of their outermost voxels, come back whole."""
    image = Volume(np.zeros((3, 31, 31), np.int16), "HU", np.diag([2.0, 0.7, 0.7, 1]))
    distance = np.hypot(*(np.indices((31, 31)) - 15))
    disc = ((distance < 11.3) & (distance >= hole)).astype(np.uint8)
    contours = _through_centres(image, 1, disc)
    assert len(contours) == 1 + (hole > 0)
    path = write_contours(tmp_path / "rs.dcm", "1.2", {"organ": contours})
    mask = read_mask(path, image, ["organ"])
    np.testing.assert_array_equal(mask[1], disc)
    assert mask.sum() == disc.sum()


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "POINT"])
def test_short_contours_add_the_voxels_they_meet(
    cube: Volume, tmp_path: pathlib.Path, kind: str
) -> None:
    """One or two points beside a good contour: two voxels of a line, one voxel, or none."""
    square = _box(cube, 2, 1.5, 4.5)
    line = transform(affine_of(cube), np.array([(3.0, 6, 6), (3, 6, 7)])) * (-1, -1, 1)
    stray = transform(affine_of(cube), np.array([(1.0, 8.4, 8.4)])) * (-1, -1, 1)
    points = [line, stray] if kind == "CLOSED_PLANAR" else [line[:1], stray]
    path = write_contours(tmp_path / "rs.dcm", "1.2", {"organ": [square, *points]})
    dataset = pydicom.dcmread(path)
    for contour in dataset.ROIContourSequence[0].ContourSequence[1:]:
        contour.ContourGeometricType = kind
    dataset.save_as(path)
    expected = np.zeros(cube.shape, np.uint8)
    expected[2, 2:5, 2:5] = 1
    expected[3, 6, 6 : 6 + len(points[0])] = 1
    np.testing.assert_array_equal(read_mask(path, cube, ["organ"]), expected)


def test_a_contour_that_is_there_twice(cube: Volume, tmp_path: pathlib.Path) -> None:
    """It counts once, from whichever point it starts; a smaller one inside is still a hole."""
    square, inner = _box(cube, 2, 1.5, 9.5), _box(cube, 2, 3.5, 6.5)
    contours = [square, np.roll(square, 1, axis=0), inner, inner[::-1]]
    path = write_contours(tmp_path / "rs.dcm", "1.2", {"organ": contours})
    assert read_mask(path, cube, ["organ"]).sum() == 64 - 9


@pytest.mark.parametrize("slices", [[1, 3], [0, 2, 5], [0, 1, 5]])
def test_parts_apart(cube: Volume, tmp_path: pathlib.Path, slices: list[int]) -> None:
    """Slices at uneven distances belong to separate parts, and each is read as it is."""
    contours = [_box(cube, d, 1.5, 4.5) for d in slices]
    path = write_contours(tmp_path / "rs.dcm", "1.2", {"organ": contours})
    mask = read_mask(path, cube, ["organ"])
    assert np.flatnonzero(mask.any((1, 2))).tolist() == slices and mask.sum() == 9 * len(slices)


def test_contours_in_another_plane(cube: Volume, tmp_path: pathlib.Path) -> None:
    """Sagittal contours are filled on the sagittal slices of the image."""
    square = _box(cube, 0, 1.5, 4.5)
    sagittal = transform(np.linalg.inv(affine_of(cube)), square * (-1, -1, 1))[:, [1, 2, 0]]
    sagittal[:, 2] = 7
    points = transform(affine_of(cube), sagittal) * (-1, -1, 1)
    path = write_contours(tmp_path / "rs.dcm", "1.2", {"organ": [points]})
    expected = np.zeros(cube.shape, np.uint8)
    expected[2:5, 2:5, 7] = 1
    np.testing.assert_array_equal(read_mask(path, cube, ["organ"]), expected)


@pytest.mark.parametrize(
    ("slices", "low", "high", "problem"),
    [
        ([2.5], 1.5, 4.5, "between them"),
        ([1, 1.5, 2], 1.5, 4.5, "between them"),
        ([7], 1.5, 4.5, "outside of the image"),
        ([-1], 1.5, 4.5, "outside of the image"),
        ([2], 1.5, 14, "outside of the image"),
        ([2], -400, -300, "outside of the image"),
        ([0, 2, 4], 1.5, 4.5, "one in 2 slices of the image"),
        ([2], 1.2, 1.8, "contain no voxel"),
    ],
)
def test_refuses_contours_that_miss_the_slices(
    cube: Volume,
    tmp_path: pathlib.Path,
    slices: list[float],
    low: float,
    high: float,
    problem: str,
) -> None:
    """They belong to another image; an empty mask would hide it."""
    contours = [_box(cube, d, low, high) for d in slices]
    path = write_contours(tmp_path / "rs.dcm", "1.2", {"organ": contours})
    with pytest.raises(DataError, match=problem) as caught:
        read_mask(path, cube, ["organ"])
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    ("contour", "problem"),
    [
        ({"ContourGeometricType": "POINT"}, "points or open lines"),
        ({"ContourGeometricType": None}, "points or open lines"),
        ({"ContourGeometricType": "OPEN_PLANAR"}, "points or open lines"),
        ({"NumberOfContourPoints": 5}, "claims 5 points and has 4"),
        ({"ContourData": [1.0, 2, 3, 4]}, "something else than points"),
        ({"ContourData": [1.0, 2, 3]}, "claims 4 points and has 1"),
        ({"ContourData": None}, "something else than points"),
        ({"ContourData": ["1e300"] * 12}, "not a position in a patient"),
    ],
)
def test_refuses_contours(
    cube: Volume, tmp_path: pathlib.Path, contour: dict[str, Any], problem: str
) -> None:
    """Damaged ones, and those that enclose nothing."""
    outlines = {"Doe^Jane": [_box(cube, 2, 1.5, 4.5)]}
    path = write_contours(tmp_path / "rs.dcm", "1.2", outlines, **contour)
    with pytest.raises(DataError, match=problem) as caught:
        read_mask(path, cube, ["doe^jane"])
    assert "Jane" not in str(caught.value)


def test_rtstruct_in_another_frame_of_reference(small: Scan, tmp_path: pathlib.Path) -> None:
    """Even when the contours happen to fall on the image."""
    outlines = {"a": [_box(small.image, 2, 0.5, 2.5)], "A": [_box(small.image, 2, 0.5, 2.5)]}
    path = write_contours(tmp_path / "rs.dcm", "1.2.4", {"a": outlines["a"]})
    assert read_mask(path, small.image, ["a"]).sum() == 4
    path = write_contours(tmp_path / "rs.dcm", "9.9", {"a": outlines["a"]})
    with pytest.raises(DataError, match="frame of reference is not the image's"):
        read_mask(path, small.image, ["a"])
    path = write_contours(tmp_path / "rs.dcm", "1.2.4", outlines)
    with pytest.raises(DataError, match="2 structures are called 'a'"):
        read_mask(path, small.image, ["a"])


def test_refuses_patient_space_without_an_affine(cube: Volume, tmp_path: pathlib.Path) -> None:
    """An image from an array file has no place to draw contours in."""
    path = write_contours(tmp_path / "rs.dcm", "1.2", {"organ": [_box(cube, 2, 1.5, 4.5)]})
    with pytest.raises(DataError, match="image without an affine"):
        read_mask(path, Volume(cube.array, "HU"), ["organ"])


# ---- Label maps and folders


def _save(array: np.ndarray, path: pathlib.Path, affine: np.ndarray) -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def organs(cube: Volume, tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder as TotalSegmentator writes it: the spleen fills half of the liver."""
    for name, depth in (("spleen", 3), ("liver", 6), ("aorta", 1)):
        mask = np.zeros(cube.shape, np.uint8)
        mask[:depth] = 1
        _save(mask, tmp_path / "organs" / f"{name}.nii.gz", affine_of(cube))
    (tmp_path / "organs" / "statistics.json").write_text('{"liver": 7}')
    return tmp_path / "organs"


def test_folder_of_organs(cube: Volume, organs: pathlib.Path) -> None:
    """In the order asked for, or by name; the later one wins."""
    assert list(organ_files(organs)) == ["aorta", "liver", "spleen"]
    assert structures_in(organs, ["Spleen", "kidney"]) == ("Spleen",)
    by_name = read_mask(organs, cube)[:, 0, 0]
    np.testing.assert_array_equal(by_name, [3, 3, 3, 2, 2, 2])
    asked = read_mask(organs, cube, ["spleen", "aorta"])[:, 0, 0]
    np.testing.assert_array_equal(asked, [2, 1, 1, 0, 0, 0])
    with pytest.raises(DataError, match="no structures are called 'kidney'"):
        read_mask(organs, cube, ["kidney"])


@pytest.mark.parametrize(
    ("break_", "problem"),
    [
        (lambda p: (p / "liver.nii").write_bytes((p / "liver.nii.gz").read_bytes()), "second mask"),
        (lambda p: (p / "liver.nii.gz").write_bytes(b""), "empty"),
        (lambda p: _save(np.ones((6, 12, 11), np.uint8), p / "x.nii", np.eye(4)), "another grid"),
    ],
)
def test_refuses_folders(
    cube: Volume, organs: pathlib.Path, break_: Callable[[pathlib.Path], Any], problem: str
) -> None:
    """A broken organ is not taken for an absent one."""
    break_(organs)
    with pytest.raises(DataError, match=problem):
        read_mask(organs, cube)


def test_a_file_alone_in_its_folder(small: Scan, tmp_path: pathlib.Path) -> None:
    """As archives hand out segmentations."""
    (tmp_path / "seg").mkdir()
    write_seg(tmp_path / "seg" / "1-1.dcm", small.slices, small.labels, NAMES)
    np.testing.assert_array_equal(read_mask(tmp_path / "seg", small.image, NAMES), small.labels)


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.npy"])
def test_label_maps_of_other_formats(small: Scan, tmp_path: pathlib.Path, name: str) -> None:
    """Values are kept; an array without an affine must have the image's shape."""
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, small.labels)
    else:
        _save(_turned(small.labels, small.image), path, _canonical(small.image))
    np.testing.assert_array_equal(read_mask(path, small.image), small.labels)
    with pytest.raises(DataError, match="has no names of structures"):
        structures_in(path, ["liver"])


def _canonical(image: Volume) -> np.ndarray:
    return nib.as_closest_canonical(nib.Nifti1Image(image.array, image.affine)).affine


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.full(SHAPE, -1, np.int16), "labels from -1"),
        (np.full(SHAPE, 255, np.uint8), "labels from 255"),
        (np.full(SHAPE, 0.5, np.float32), "not whole numbers"),
        (np.zeros((6, 5, 5), np.uint8), "another grid"),
        (np.full(SHAPE, np.nan, np.float32), "NaN"),
    ],
)
def test_refuses_label_maps(
    small: Scan, tmp_path: pathlib.Path, values: np.ndarray, problem: str
) -> None:
    """Another grid or interpolated labels would train the wrong voxels."""
    np.save(tmp_path / "mask.npy", values)
    with pytest.raises(DataError, match=problem) as caught:
        read_mask(tmp_path / "mask.npy", small.image)
    assert caught.value.path == str(tmp_path / "mask.npy")


_SLICER = """NRRD0004
type: unsigned char
dimension: {dimension}
space: right-anterior-superior
sizes: {sizes}
space directions: {directions}
kinds: {kinds}
encoding: raw
space origin: (0,0,0)
Segment0_Name:=Liver
Segment0_LabelValue:=2
Segment0_Layer:=0
Segment1_Name:=Spleen
Segment1_LabelValue:={value}
Segment1_Layer:={layer}

"""
_FLAT = {
    "dimension": 3, "sizes": "4 3 2", "directions": "(1,0,0) (0,1,0) (0,0,1)",
    "kinds": "domain domain domain", "layer": 0,
}  # fmt: skip


def _named(folder: pathlib.Path, labels: np.ndarray, source: str) -> pathlib.Path:
    """A label map with spleen 1 and liver 2, which says so as this source does."""
    if source == "slicer":
        path = folder / "m.seg.nrrd"
        path.write_bytes(_SLICER.format(**_FLAT, value=1).encode() + labels.tobytes())
        return path
    image = nib.Nifti1Image(labels.transpose(2, 1, 0), np.eye(4))
    path = folder / "labelsTr" / "m.nii.gz"
    path.parent.mkdir()
    if source == "totalsegmentator":
        rows = '<Label Key="1" Red="0"><![CDATA[spleen]]></Label>\n<Label Key="2">liver</Label>'
        table = f"<CaretExtension><LabelTable>{rows}</LabelTable></CaretExtension>"
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, table.encode()))
    else:
        labels_of = {
            "nnunet": {"background": 0, "spleen": 1, "liver": 2, "both": [1, 2]},
            "decathlon": {"0": "background", "1": "spleen", "2": "liver"},
        }[source]
        (folder / "dataset.json").write_text(json.dumps({"labels": labels_of}))
    nib.save(image, path)
    return path


@pytest.mark.parametrize("source", ["slicer", "totalsegmentator", "nnunet", "decathlon"])
def test_label_maps_that_name_their_values(tmp_path: pathlib.Path, source: str) -> None:
    """The names choose the values, whatever the order in which they are asked for."""
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 3
    path = _named(tmp_path, labels, source)
    affine = np.eye(4)[[2, 1, 0, 3]]
    image = Volume(np.zeros(labels.shape, np.int16), "HU", affine)
    assert structures_in(path, ["LIVER", "kidney"]) == ("LIVER",)
    turned = np.array([0, 2, 1], np.uint8)[labels]
    np.testing.assert_array_equal(read_mask(path, image, ["liver", "spleen"]), turned)
    np.testing.assert_array_equal(read_mask(path, image, ["spleen"]), labels == 1)
    np.testing.assert_array_equal(read_mask(path, image), labels)
    with pytest.raises(DataError, match="no structures are called 'kidney'"):
        read_mask(path, image, ["kidney"])


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"value": 2}, "segment 1 has no label value of its own"),
        ({"value": "x"}, "segment 1 has no label value of its own"),
        (
            {"value": 1, "layer": 1, "dimension": 4, "sizes": "2 4 3 2",
             "directions": "none (1,0,0) (0,1,0) (0,0,1)", "kinds": "list domain domain domain"},
            "segments that overlap",
        ),
    ],
)  # fmt: skip
def test_refuses_segments_of_slicer(
    tmp_path: pathlib.Path, changed: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "m.seg.nrrd"
    path.write_bytes(_SLICER.format(**_FLAT | changed).encode() + bytes(48))
    image = Volume(np.zeros((2, 3, 4), np.int16), "HU", np.eye(4)[[2, 1, 0, 3]])
    with pytest.raises(DataError, match=problem):
        read_mask(path, image, ["liver"])


@pytest.mark.parametrize("text", ["[1]", "{", '{"labels": {"a": 1, "b": 1}}'])
def test_refuses_a_damaged_dataset_json(tmp_path: pathlib.Path, text: str) -> None:
    path = _named(tmp_path, np.zeros((2, 3, 4), np.uint8), "nnunet")
    (tmp_path / "dataset.json").write_text(text)
    image = Volume(np.zeros((2, 3, 4), np.int16), "HU", np.eye(4)[[2, 1, 0, 3]])
    with pytest.raises(DataError, match="two labels have the same|not a JSON object") as caught:
        read_mask(path, image, ["liver"])
    assert caught.value.path == str(tmp_path / "dataset.json")


def test_nothing_there(cube: Volume, tmp_path: pathlib.Path) -> None:
    """A missing file, and a folder without masks."""
    with pytest.raises(DataError, match="no such file"):
        read_mask(tmp_path / "missing.nii", cube)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a folder without files, where a mask"):
        read_mask(tmp_path / "empty", cube)
