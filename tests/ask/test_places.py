"""Places of fields of view and of boxes, by hand and for any axes of the file."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import ConfigError
from data_pipelines.volume import Volume
from m3djax.ask.field_of_view import At, FieldOfView
from m3djax.ask.places import (
    PlacedBox,
    millimetres,
    place_boxes,
    read_boxes,
    shown_mm,
    shown_voxels,
)

FILE = (12, 20, 40)
BOX = "[0.25, 0.5, 0.0, 0.75, 1.0, 0.5]"


def view(
    to_source: np.ndarray, size: tuple[int, int, int] = (4, 4, 4), affine: np.ndarray | None = None
) -> FieldOfView:
    """A field of view of `size` voxels in a file of 12 x 20 x 40."""
    scan = Volume(np.zeros(FILE, np.int16), "HU", affine, source="scan")
    seen = Volume(np.zeros(size, np.int16), "HU", to_source=to_source, source_shape=FILE)
    return FieldOfView(scan, seen, np.zeros((*size, 1), np.int16), 1.0, 0.0)


def moved(scale: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = shift
    return matrix


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_boxes_are_placed_along_any_axes(data: st.DataObject) -> None:
    """Corners of boxes are faces of voxels, which lie half a voxel before the centres."""
    order = data.draw(st.permutations(range(3)))
    scale = np.array([data.draw(st.sampled_from([-2.0, -1.0, 1.0, 2.0, 3.0])) for _ in range(3)])
    to_source = np.eye(4)
    to_source[:3, :3] = np.eye(3)[order] * scale
    to_source[:3, 3] = [data.draw(st.integers(-4, 20)) for _ in range(3)]
    ends = [sorted(data.draw(st.sets(st.integers(0, 4), min_size=2, max_size=2))) for _ in "dhw"]
    text = str([low / 4 for low, _ in ends] + [high / 4 for _, high in ends])
    corners = np.array([*itertools.product(*ends)]) - 0.5
    there = corners @ to_source[:3, :3].T + to_source[:3, 3] + 0.5
    wanted = np.stack([there.min(0), there.max(0)]).clip(0, FILE)
    found = place_boxes(text, view(to_source))
    if np.any(wanted[0] >= wanted[1]):
        assert found.outside == (text,) and not found.placed
    else:
        [box] = found.placed
        np.testing.assert_allclose(box.voxels, wanted.ravel(), atol=1e-9)
        assert box.text == text and box.mm is None


@pytest.mark.parametrize(
    "text, released, wanted",
    [
        (BOX, False, [1, 2, 0, 3, 4, 2]),
        (BOX, True, [1, 2, 0, 4, 4, 3]),  # the end is in the box, but no voxel beyond the input
        ("[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]", True, [2, 2, 2, 3, 3, 3]),  # a single voxel
    ],
)
def test_released_boxes_hold_their_end(text: str, released: bool, wanted: list[float]) -> None:
    [box] = place_boxes(text, view(np.eye(4)), released=released).placed
    assert box.voxels.tolist() == wanted


@pytest.mark.parametrize(
    "text, found, unreadable",
    [
        ("", [], []),
        (f"At {BOX} and {BOX}.", [BOX, BOX], []),
        (f"{BOX[:-1]} {BOX}", [BOX], [f"{BOX[:-1]} "]),  # one that is not closed ends at the next
        ("[SEG] [1]", [], ["[1]"]),
        ("0.1, 0.2, 0.3", [], []),  # three fractions are no box
        ("0.1,0.2, 0.3 , 4", [], ["0.1,0.2, 0.3 , 4"]),
        ("-.5, 0.2, 0.3, 0.4 cm", [], ["-.5, 0.2, 0.3, 0.4"]),
        (f"{BOX} or 0.1, 0.2, 0.3, 0.4", [BOX], ["0.1, 0.2, 0.3, 0.4"]),
        ("[0.1, [0.2]]", [], ["[0.1, ", "[0.2]"]),
    ],
)
def test_texts_that_look_like_boxes(text: str, found: list[str], unreadable: list[str]) -> None:
    boxes, others = read_boxes(text)
    assert [written for written, _ in boxes] == found and others == unreadable
    for _, box in boxes:
        assert box.tolist() == [0.25, 0.5, 0.0, 0.75, 1.0, 0.5]


@given(st.lists(st.floats(-50, 50), min_size=12, max_size=12))
def test_millimetres_are_of_the_upright_box_around_all_voxels(numbers: list[float]) -> None:
    affine = np.eye(4)
    affine[:3] += np.reshape(numbers, (3, 4)) / 200  # oblique, and never singular
    scan = Volume(np.zeros(FILE, np.int16), "HU", affine)
    found = millimetres(np.array([1.0, 2, 3, 2, 4, 6]), scan)
    ends = [*itertools.product((0.5, 1.5), (1.5, 3.5), (2.5, 5.5))]
    points = np.array([affine[:3, :3] @ end + affine[:3, 3] for end in ends])
    assert found is not None
    np.testing.assert_allclose(found, [*points.min(0), *points.max(0)], atol=1e-9)


@pytest.mark.parametrize(
    "box, text",
    [
        ([0, 2, 3, 4, 5, 6], "voxels [0:4, 2:5, 3:6]"),
        ([0.04, 2, 3, 4, 5, 5.96], "voxels [0:4, 2:5, 3:6]"),
        ([0.2, 2, 3, 4, 5, 6], "about voxels [0:4, 2:5, 3:6]"),
        ([1.1, 2, 3, 1.3, 5, 6], "about voxels [1:2, 2:5, 3:6]"),  # never empty
    ],
)
def test_voxels_as_text(box: list[float], text: str) -> None:
    assert shown_voxels(np.array(box, float)) == text


def test_a_place_as_text() -> None:
    voxels, mm = np.array([0.0, 1, 2, 3, 4, 5]), np.array([-1.26, 0, 2, 3.24, 4, 1000])
    assert shown_mm(mm) == "RAS+ mm x -1.3 to 3.2, y 0.0 to 4.0, z 2.0 to 1000.0"
    assert str(PlacedBox(BOX, voxels, mm)) == f"voxels [0:3, 1:4, 2:5] of the file; {shown_mm(mm)}"
    assert str(PlacedBox(BOX, voxels, None)).endswith(
        "of the file; no millimetres, as the file does not say where it lies"
    )


@pytest.mark.parametrize(
    "scale, shift, frame, share, beyond",
    [
        ((1, 1, 1), (0, 0, 0), [0, 0, 0, 4, 4, 4], 64 / 9600, 0),
        ((-1, 1, 1), (3, 0, 0), [0, 0, 0, 4, 4, 4], 64 / 9600, 0),
        ((2, 2, 2), (0.5, 0.5, 0.5), [0, 0, 0, 8, 8, 8], 512 / 9600, 0),
        ((3, 5, 10), (1, 2, 4.5), [0, 0, 0, 12, 20, 40], 1, 0),
        ((1, 1, 1), (-2, 18, 0), [0, 18, 0, 2, 20, 4], 16 / 9600, 0.75),
    ],
)
def test_frames_by_hand(
    scale: tuple[float, float, float],
    shift: tuple[float, float, float],
    frame: list[float],
    share: float,
    beyond: float,
) -> None:
    looked = view(moved(scale, shift))
    np.testing.assert_allclose(looked.frame(), frame, atol=1e-9)
    assert looked.share() == pytest.approx(share) and looked.beyond() == pytest.approx(beyond)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("centre", At()),
        ("whole", At(whole=True)),
        ("30,200,180", At((30, 200, 180))),
        (" 3 , 2.5 ,+1 ", At((3, 2.5, 1))),
        ("-12,40,1310mm", At((-12, 40, 1310), mm=True)),
        ("0.25,-0.5,7 mm", At((0.25, -0.5, 7), mm=True)),
    ],
)
def test_places_of_the_command_line(text: str, wanted: At) -> None:
    assert At.read(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "Centre", "1,2", "1,2,3,4", "1 2 3", "1,2,3cm", "1e3,2,3", "nan,1,2", ".5,1,2"]
)
def test_other_texts_are_no_places(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        At.read(text)
    assert f"--at {text!r} is no place. Cure: centre, whole, a voxel" in str(error.value)
