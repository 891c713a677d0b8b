"""Facts about a small crop, and the questions that they answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines import boxes
from data_pipelines.captions.balance import Odds
from data_pipelines.captions.scene import Scene, bare

NAMES = {1: "liver", 2: "spleen", 3: "kidney_left", 4: "aorta", 5: "stomach"}
MASK = np.zeros((4, 8, 10), np.uint8)
MASK[:2, :4, :5] = 1
MASK[2:, 4:, 5:] = 2
SCENE = Scene(
    mask=MASK,
    names=NAMES,
    visible=[1, 2],
    missing=[3, 4, 5],
    odds=Odds({1: 0.5}, {3: 0.5}, {3: 1.0, 4: 1.0, 5: 2.0}),
    about={1: ("the largest gland",), 4: ("the largest artery",)},
    released=False,
    short=False,
)


@pytest.mark.parametrize("value", NAMES)
def test_yes_is_said_of_what_is_visible(value: int) -> None:
    found = SCENE.yes_no(value).worded(None)
    answer = "Yes." if value in (1, 2) else "No."
    assert (found.text, found.kind, found.label) == (answer, "yes_no", NAMES[value])
    assert found.meaning == f"yes_no {NAMES[value]} {answer}"
    assert bare(NAMES[value]) in found.question


@pytest.mark.parametrize("seed", range(8))
def test_one_choice_is_visible_and_its_letter_is_the_answer(seed: int) -> None:
    template = SCENE.choice(1, np.random.default_rng(seed))
    assert template is not None
    found = template.worded(np.random.default_rng(seed))
    assert sorted(found.choices) == ["aorta", "left kidney", "liver", "stomach"]
    assert found.text == f"{found.text[0]}. liver"
    assert found.lettered[found.text[0]] == "liver"


def test_every_letter_is_right_at_times() -> None:
    rng = np.random.default_rng(0)
    found = [SCENE.choice(1, rng) for _ in range(60)]
    assert {one.answers[0][0] for one in found if one} == set("ABCD")


def test_three_wrong_choices_are_needed() -> None:
    few = dataclasses.replace(SCENE, odds=Odds({1: 0.5}, {3: 0.5}, {3: 1.0, 4: 1.0}))
    assert few.choice(1, np.random.default_rng(0)) is None


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("value, box", [(1, [0, 0, 0, 0.5, 0.5, 0.5]), (2, [0.5] * 3 + [1] * 3)])
def test_the_answer_has_the_box_of_the_mask(value: int, box: list[float], short: bool) -> None:
    found = dataclasses.replace(SCENE, short=short).place("rec", value).worded(None)
    np.testing.assert_array_equal(boxes.read_box(found.text), box)
    assert boxes.read_box(found.question) is None
    asked = SCENE.place("reg", value).worded(None)
    np.testing.assert_array_equal(boxes.read_box(asked.question), box)
    assert bare(NAMES[value]) in asked.text.lower()


def test_what_is_missing_has_no_box() -> None:
    found = SCENE.place("rec", 4).worded(None)
    assert found.meaning == "rec aorta absent"
    assert not len(boxes.text_to_boxes(found.text + found.question))


def test_descriptions_are_only_asked_where_there_are_some() -> None:
    assert SCENE.placed("rec") == [1, 2]
    assert SCENE.placed("rec", lacks=True) == [3, 4, 5]
    assert SCENE.placed("rec_described") == [1]
    assert SCENE.placed("seg_described", lacks=True) == [4]
    assert SCENE.placed("reg_described") == [1]


def test_structures_with_nearly_one_box_are_not_asked_by_box() -> None:
    mask = np.zeros((4, 8, 10), np.uint8)
    mask[:2, :4, :5], mask[0, 0, 0], mask[1, 3, 4] = 1, 2, 2  # both have the same box
    same = dataclasses.replace(SCENE, mask=mask)
    assert same.distinct() == []
    assert SCENE.distinct() == [1, 2]
