"""Boxes in answers."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.boxes import read_box, read_box_released
from m3djax.evaluate.answers.boxes import box_scores

TRUTH = "<bx_start>[0.0, 0.0, 0.0, 0.5, 1.0, 1.0]<bx_end>"


@pytest.mark.parametrize(
    "text",
    [
        "[0.25, 0.312, 0.1, 0.5, 0.7, 0.4]",
        "<bx_start>[0.25,0.312,.1,0.5,0.7,0.4]<bx_end>.",
        "It is at [ 0.25, 0.312, 0.10, 0.5, 0.7, 0.4 ], so [0.25, 0.312, 0.1, 0.5, 0.7, 0.4].",
    ],
)
def test_read(text: str) -> None:
    np.testing.assert_array_equal(read_box(text), [0.25, 0.312, 0.1, 0.5, 0.7, 0.4])


@pytest.mark.parametrize(
    "text",
    [
        *("", "no box", "[0.1, 0.2, 0.3]", "0.1, 0.1, 0.1, 0.2, 0.2, 0.2", "[a, 0, 0, 1, 1, 1]"),
        "[0.5, 0, 0, 0.4, 1, 1]",  # its end before its start
        "[0, 0, 0, 1.2, 1, 1]",  # outside
        "[0, 0, 0, 1, 1, 1] or [0, 0, 0, 1, 1, 0.5]",  # which?
        "[0, 0, 0, 1, 1, 1] and [0.5, 0.5",  # cut short
    ],
)
def test_unreadable_is_not_guessed(text: str) -> None:
    assert read_box(text) is None
    assert box_scores(text, TRUTH)["unparsed"] == 1
    assert box_scores(text, TRUTH)["iou"] == 0


def test_scores() -> None:
    scores = box_scores("[0.0, 0.0, 0.0, 0.5, 1.0, 0.5]", TRUTH)
    assert scores["iou"] == 0.5 and scores["acc@0.25"] == scores["acc@0.5"] == 1
    assert scores["unparsed"] == 0
    assert scores["iou_whole"] == 0.5
    # Here the enclosing box is the union.
    assert scores["iou_m3d"] == pytest.approx(0.25 / (0.5 + 1e-6))
    assert box_scores("[0.25, 0.0, 0.0, 0.75, 1.0, 1.0]", TRUTH)["acc@0.5"] == 0
    # M3D leaves out what its parser cannot read; the true numbers count it as missed.
    assert np.isnan(box_scores("[0,0,0,0.5,1,1]", TRUTH)["iou_m3d"])
    assert box_scores("[0,0,0,0.5,1,1]", TRUTH)["iou"] == 1


def test_where_nothing_is_to_be_found() -> None:
    assert box_scores("There is no spleen here.", "") == {"refused": 1}
    assert box_scores("[0, 0, 0, 1, 1, 1]", "It is not there.") == {"refused": 0}


def test_the_released_parser_takes_the_first() -> None:
    assert read_box_released("[0,0,0,1,1,1]") is None
    two = "[0.5, 0, 0, 0.4, 1, 1] [0, 0, 0, 1, 1, 1]"
    np.testing.assert_array_equal(read_box_released(two), [0.5, 0, 0, 0.4, 1, 1])
