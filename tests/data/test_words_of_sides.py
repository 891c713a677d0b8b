"""Names of structures in words, and what a text forbids about flips and turns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.captions.anatomy import phrases, spoken
from data_pipelines.text.directions import Allowed, allowed

SPL = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
"""D from feet to head, H from front to back, W from the right to the left."""
ALL, NONE = Allowed(), Allowed((False, False, False), turns=False)
LEVELS = [f"C{n}" for n in range(1, 8)] + [f"T{n}" for n in range(1, 13)]
LEVELS += [*(f"L{n}" for n in range(1, 6)), "S1"]


@pytest.mark.parametrize(
    "names, parts",
    [
        ([], []),
        (["liver"], ["the liver"]),
        (["kidney_right", "kidney_left"], ["the left and right kidney"]),
        (["kidney_right"], ["the right kidney"]),
        (["vertebrae_T12", "vertebrae_L1"], ["the vertebrae T12 to L1"]),
        (["vertebra_C7"], ["the vertebra C7"]),
        (["vertebrae_L1", "vertebrae_L3"], ["the vertebra L1", "the vertebra L3"]),
        (["rib_left_3", "rib_left_4", "rib_left_5"], ["the left ribs 3 to 5"]),
        (["rib_left_2", "rib_right_2"], ["the left rib 2", "the right rib 2"]),
        (["autochthon_left"], ["the left deep muscles of the back"]),
        (["lung_upper_lobe_left"], ["the left upper lobe of the lung"]),
        (["small_bowel"], ["the small bowel"]),
        (["vertebrae_L9"], ["the vertebrae L9"]),  # no such level: the name as it is
        (["vertebrae_S1", "spleen"], ["the spleen", "the vertebra S1"]),  # levels come last
    ],
)
def test_names_in_words(names: list[str], parts: list[str]) -> None:
    assert phrases(names) == parts


@given(st.sets(st.sampled_from(LEVELS), min_size=1))
def test_runs_of_vertebrae_name_each_level_once(levels: set[str]) -> None:
    named: list[str] = []
    for part in phrases([f"vertebrae_{level}" for level in levels]):
        first, *last = part.split("the ")[1].split(" ", 1)[1].split(" to ")
        end = LEVELS.index(last[0] if last else first)
        named += LEVELS[LEVELS.index(first) : end + 1]
    assert named == sorted(levels, key=LEVELS.index)


@pytest.mark.parametrize(
    "parts, text",
    [
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (["the left and right kidney", "b", "c"], "the left and right kidney; b and c"),
    ],
)
def test_parts_as_a_list(parts: list[str], text: str) -> None:
    assert spoken(parts) == text


@pytest.mark.parametrize(
    "text, flips, turns",
    [
        ("", (True, True, True), True),
        ("A cyst in the liver.", (True, True, True), True),
        ("A cyst in the LEFT kidney.", (True, True, False), False),
        ("Bilateral effusions.", (True, True, True), True),
        ("Contralateral shift.", (True, True, False), False),
        ("The anterior wall.", (True, False, True), False),
        ("Dependent atelectasis.", (True, False, True), False),
        ("The upper lobe.", (False, True, True), True),
        ("Bibasal atelectasis.", (False, True, True), True),
        ("An axial image.", (True, True, True), True),  # a turn stays within the axial plane
        ("A coronal image.", (True, True, True), False),
        ("A sagittal image.", (True, True, True), False),
        ("The left upper lobe, posteriorly.", (False, False, False), False),
        ("Leftover", (True, True, False), False),  # another sense only forbids more
        ("It is at [0.1, 0.2, 0.3, 0.4, 0.5, 0.6].", (False, False, False), False),
    ],
)
def test_what_a_text_forbids(text: str, flips: tuple[bool, ...], turns: bool) -> None:
    assert allowed(text, SPL) == Allowed(flips, turns)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A cyst.", ALL),
        ("The left side.", NONE),
        ("The upper side.", NONE),
        ("An axial image.", Allowed(turns=False)),
        ("[0.1,0.2,0.3,0.4,0.5,0.6]", NONE),
    ],
)
def test_without_an_affine_any_axis_may_be_meant(text: str, expected: Allowed) -> None:
    assert allowed(text, None) == expected


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_affine_tells_which_axis_is_meant(order: tuple[int, ...]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order]  # array axis n lies along the patient's axis order[n]
    for axis, word in enumerate(("left", "anterior", "upper")):
        found = allowed(f"the {word} part", affine)
        assert found.flips == tuple(along != axis for along in order)
        assert found.turns == (order[0] == axis)
