"""Boxes as text: what is written, what is read, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import boxes

BOX = "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]"
VALUES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
thousandths = st.lists(st.integers(0, 1000), min_size=6, max_size=6).map(
    lambda some: (
        np.concatenate([np.minimum(some[:3], some[3:]), np.maximum(some[:3], some[3:])]) / 1000
    )
)


@given(thousandths)
def test_both_forms_of_a_box_are_read_back(box: np.ndarray) -> None:
    for text in (boxes.box_to_text(box), boxes.box_to_short_text(box)):
        np.testing.assert_array_equal(boxes.read_box(f"It is at {text}."), box)
    np.testing.assert_array_equal(boxes.read_box_released(boxes.box_to_text(box)), box)


@pytest.mark.parametrize(
    "box, long, short",
    [
        ([0, 0.3, 0.2, 1, 0.5, 0.4], "[0.0, 0.3, 0.2, 1.0, 0.5, 0.4]", "[0,.3,.2,1,.5,.4]"),
        ([0, 0, 0, 1, 1, 1], "[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]", "[0,0,0,1,1,1]"),
        (
            [0.05, 0.25, 0.125, 0.5, 0.75, 0.999],
            "[0.05, 0.25, 0.125, 0.5, 0.75, 0.999]",
            "[.05,.25,.125,.5,.75,.999]",
        ),
    ],
)
def test_the_written_forms(box: list[float], long: str, short: str) -> None:
    assert boxes.box_to_text(np.array(box)) == long
    assert boxes.box_to_short_text(np.array(box)) == short


@pytest.mark.parametrize(
    "answer",
    [
        BOX,
        "[.1,.2,.3,.4,.5,.6]",
        "[ 0.1 ,0.2 , 0.3,  0.4,0.5,+0.6 ]",
        f"Sure, it is {boxes.START}{BOX}{boxes.END}.",
        f"{BOX} and again {BOX}",
        "[0.10, 0.20, 0.30, 0.400, 0.5, 0.6]",
    ],
)
def test_answers_with_a_box(answer: str) -> None:
    np.testing.assert_array_equal(boxes.read_box(answer), VALUES)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "There is none.",
        "0.1, 0.2, 0.3, 0.4, 0.5, 0.6",  # no brackets
        "[0.1, 0.2, 0.3, 0.4, 0.5]",
        "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]",
        f"{BOX} or [0.1, 0.2, 0.3, 0.4, 0.5, 0.7]",
        f"{BOX} or [0.1, 0.2",
        "[0.1, 0.2, 0.3, 0.4, 0.5, 1.1]",
        "[-0.1, 0.2, 0.3, 0.4, 0.5, 0.6]",
        "[0.5, 0.2, 0.3, 0.4, 0.5, 0.6]",  # the maximum is below the minimum
        "[0.1, 0.2, 0.3, 0.4, 0.5, nan]",
        "[0.1, 0.2, 0.3, 0.4, 0.5, 6e-1]",
    ],
)
def test_answers_without_one_plain_box(answer: str) -> None:
    assert boxes.read_box(answer) is None


def test_the_released_reader_takes_the_first_and_checks_nothing() -> None:
    text = "[5.0, -2, .5, 0.4, 0.5, 0.6] [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]"
    np.testing.assert_array_equal(boxes.read_box_released(text), [5, -2, 0.5, 0.4, 0.5, 0.6])
    assert boxes.read_box_released("[0.1,0.2,0.3,0.4,0.5,0.6]") is None


def test_all_boxes_of_a_text_are_in_order() -> None:
    found = boxes.text_to_boxes(f"{BOX}, then [1,2,3,4,5,6].")
    np.testing.assert_array_equal(found, [VALUES, [1, 2, 3, 4, 5, 6]])
    assert boxes.text_to_boxes("none").shape == (0, 6)


def test_the_released_box_is_one_voxel_short() -> None:
    mask = np.zeros((4, 8, 10), np.uint8)
    mask[1:3, 2:6, 5] = 7
    np.testing.assert_array_equal(boxes.mask_to_box(mask), [0.25, 0.25, 0.5, 0.75, 0.75, 0.6])
    released = boxes.mask_to_box(mask, released=True)
    np.testing.assert_array_equal(released, [0.25, 0.25, 0.5, 0.5, 0.625, 0.5])
    coarse = boxes.mask_to_box(mask, decimals=1)
    np.testing.assert_array_equal(coarse, [0.2, 0.2, 0.5, 0.8, 0.8, 0.6])


@given(thousandths, thousandths)
def test_overlap_is_symmetric_and_never_less_than_the_released_one(
    one: np.ndarray, other: np.ndarray
) -> None:
    both = boxes.iou(one, other)
    assert both == pytest.approx(boxes.iou(other, one))
    assert -1e-9 <= boxes.iou(one, other, released=True) <= both + 1e-9 <= 1 + 2e-9


def test_overlap_by_hand() -> None:
    one, other = np.array([0, 0, 0, 2, 2, 2.0]), np.array([1, 1, 1, 3, 3, 3.0])
    assert boxes.iou(one, other) == pytest.approx(1 / 15)
    assert boxes.iou(one, other, released=True) == pytest.approx(1 / 27)
    assert boxes.iou(one, one) == 1
    assert boxes.iou(np.zeros(6), np.zeros(6)) == 0
    assert boxes.iou(one, other + 5) == 0
