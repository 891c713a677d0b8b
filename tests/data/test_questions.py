"""Questions from label maps: certain answers, which the questions do not reveal."""

from __future__ import annotations

import collections
import dataclasses
import re
from string import Formatter
from typing import Any

import numpy as np
import pytest
from etils import epath

from data_pipelines import fetch
from data_pipelines.boxes import mask_to_box, read_box, text_to_boxes
from data_pipelines.caption import Question
from data_pipelines.captions import (
    MaskCaption,
    Report,
    View,
    place_templates,
    segment_templates,
    templates,
)
from data_pipelines.captions.descriptions import describe
from data_pipelines.captions.instructions import Conversation, Describe, Mixture, Stored
from data_pipelines.captions.questions import KINDS, MaskQuestions
from data_pipelines.captions.scene import bare
from data_pipelines.errors import ConfigError
from data_pipelines.placement import Ground, PlacedCropMasks, place
from data_pipelines.text.directions import Allowed, allowed

NAMES = {1: "liver", 2: "spleen", 3: "kidney_left", 4: "kidney_right", 5: "heart", 6: "aorta"}
SIZE = (6, 16, 16)
ASK = MaskQuestions(least=10, seg=1.0, rec_described=1.0, reg_described=1.0, seg_described=1.0)


PLACES = ("rec", "reg", "seg", "rec_described", "reg_described", "seg_described")
WORDS = (templates, place_templates, segment_templates)
TEMPLATES: dict[str, tuple[int, *tuple[str, ...]]] = {  # M3D's number of them, and their fields
    "REPORT": (42,),
    "YES_NO": (8, ""),
    "CHOICE": (6,),
    "REC": (19, ""),
    "REC_ANSWERS": (32, "box"),
    "REC_ABSENT": (15 + 9,),
    "REG": (36, "box"),
    "REG_ANSWERS": (20, ""),
    "REC_DESCRIBED": (41, "about"),
    "REC_DESCRIBED_ANSWERS": (21, "", "box"),
    "REC_DESCRIBED_ABSENT": (13 + 6, ""),
    "REG_DESCRIBED": (17, "box"),
    "REG_DESCRIBED_ANSWERS": (18, "", "about"),
    "SEG": (26, ""),
    "SEG_ANSWERS": (13, "mask"),
    "SEG_ABSENT": (12,),
    "SEG_DESCRIBED": (21, "about"),
    "SEG_DESCRIBED_ANSWERS": (12, "", "mask"),
    "SEG_DESCRIBED_ABSENT": (10, ""),
}


def record(**changes: Any) -> dict[str, Any]:
    """Slabs along D of six labels; the last label was not drawn."""
    mask = np.zeros((24, 20, 20), np.uint8)
    for value, (low, high) in enumerate([(0, 8), (6, 12), (10, 20), (14, 22), (0, 24), (0, 24)], 1):
        mask[low:high, 3 * value - 3 : 3 * value - 1, 2:18] = value
    annotated = np.zeros(256, bool)
    annotated[[1, 2, 3, 4, 5]] = True
    values = {
        "image": mask,
        "mask": mask,
        "mask_valid": True,
        "annotated": annotated,
        "source": "s",
        "study_id": "1",
    }
    return values | {"report_valid": False, "qa_valid": False, "report": "", "qa": ""} | changes


def view(seed: int, shown: dict[str, Any]) -> View:
    window = place(shown["mask"].shape, SIZE, np.random.default_rng((seed, 1)))
    return View(shown, window.of(shown["mask"], 0), NAMES, PlacedCropMasks(Ground(shown), SIZE))


def true(question: Question, seen: View) -> bool:
    assert seen.mask is not None
    values = {name: value for value, name in NAMES.items()}
    value = values[question.label]
    if question.kind == "yes_no":
        return question.text == ("Yes." if (seen.mask == value).any() else "No.")
    if question.kind == "choice":
        there = [str(text) for text in question.lettered.values() if _shown(text, seen)]
        return [question.lettered[question.text[0]]] == there
    if question.kind.endswith("described"):
        there = question.text if question.kind == "reg_described" else question.question
        assert any(about in there for about in describe(question.label))
        assert _name(question.label) in question.text
    if question.kind.startswith("seg"):
        return question.text.count("[SEG]") == 1 and bool((seen.mask == value).any())
    (box,) = text_to_boxes(question.question + question.text)
    return bool((box == mask_to_box(seen.mask == value)).all())


def _name(label: str) -> str:
    return " ".join(reversed(label.split("_")))


def _shown(words: str, seen: View) -> bool:
    return any((seen.mask == value).any() for value, name in NAMES.items() if _name(name) == words)


def test_answers_are_true_and_nothing_is_asked_of_what_nobody_drew() -> None:
    shown = record()
    kinds = set()
    for seed in range(60):
        seen = view(seed, shown)
        asked = [
            *ASK.every(seen),
            *filter(None, [ASK(seen, None), ASK(seen, np.random.default_rng(seed))]),
        ]
        for question in asked:
            assert true(question, seen), question
            assert "aorta" not in question.question + question.text
            kinds.add(question.kind)
    assert kinds == set(KINDS)


def test_words_alone_do_not_tell_the_answer() -> None:
    shown = record()
    ask = dataclasses.replace(ASK, **dict.fromkeys(PLACES, 0.0))
    told: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    right: dict[str, collections.Counter[bool]] = collections.defaultdict(collections.Counter)
    for seed in range(3000):
        question = ask(view(seed, shown), np.random.default_rng(seed))
        if question is None:
            continue
        if question.kind == "yes_no":
            told[question.label][question.text] += 1
        for choice in question.choices:
            right[choice][choice in question.text] += 1
    assert "heart" not in told  # always there: the answer would be known
    assert set(told) == {"liver", "spleen", "kidney_left", "kidney_right"}
    for counts in told.values():
        assert abs(counts["Yes."] / counts.total() - 0.5) < 4 * 0.5 / np.sqrt(counts.total()) + 0.05


def test_without_a_generator_the_question_follows_from_record_and_crop() -> None:
    one, two = record(), record(study_id="2")
    first = [ASK(view(seed, one), None) for seed in range(20)]
    assert first == [ASK(view(seed, one), None) for seed in range(20)]
    assert first != [ASK(view(seed, two), None) for seed in range(20)]


def test_a_volume_that_is_taken_whole_is_asked_for_places_only() -> None:
    shown = record()
    seen = View(shown, shown["mask"], NAMES, PlacedCropMasks(Ground(shown), shown["mask"].shape))
    assert {question.kind for question in ASK.every(seen)} == set(PLACES)


@pytest.mark.parametrize("kind", ["rec", "rec_described", "seg", "seg_described"])
def test_what_is_not_there_has_no_box_and_no_mask(kind: str) -> None:
    ask = dataclasses.replace(ASK, **dict.fromkeys(KINDS, 0.0) | {kind: 1.0}, absent=1.0)
    told = set()
    for seed in range(200):
        seen = view(seed, record())
        answer = ask(seen, np.random.default_rng(seed))
        assert answer is not None and answer.kind == kind
        if len(text_to_boxes(answer.text)) or "[SEG]" in answer.text:
            assert true(answer, seen)
            continue
        values = {name: value for value, name in NAMES.items()}
        assert not (seen.mask == values[answer.label]).any()
        told.add(answer.text)
        if kind in ("rec", "seg"):
            absent = {"rec": place_templates.REC_ABSENT, "seg": segment_templates.SEG_ABSENT}
            assert answer.text in absent[kind]
        else:
            assert _name(answer.label) in answer.text and "liver" not in answer.question
    assert len(told) > 10


def test_what_is_not_there_is_among_all_questions_if_it_may_be_asked_for() -> None:
    seen = view(0, record())
    there = ASK.every(seen)
    more = [q for q in dataclasses.replace(ASK, absent=0.1).every(seen) if q not in there]
    assert {question.kind for question in more} == {*PLACES} - {"reg", "reg_described"}
    assert all(question.meaning.endswith("absent") for question in more)


def test_short_boxes_in_one_form() -> None:
    """For trainings of minutes: the question varies, the answer is a box of few tokens."""
    find = MaskQuestions(yes_no=0, choice=0, reg=0, least=10, short=True)
    asked = set()
    for seed in range(20):
        seen = view(seed, record())
        question = find(seen, np.random.default_rng(seed))
        assert question is not None
        asked.add(question.question.replace(_name(question.label), ""))
        (value,) = (value for value, name in NAMES.items() if name == question.label)
        box = mask_to_box(seen.mask == value, decimals=1)
        assert re.fullmatch(r"\[(([01]|\.\d),){5}([01]|\.\d)\]\.", question.text)
        np.testing.assert_array_equal(read_box(question.text), box)
        np.testing.assert_array_equal(text_to_boxes(question.text), [box])
        np.testing.assert_allclose(box, mask_to_box(seen.mask == value), atol=0.051)
    assert len(asked) > 5


def test_a_description_that_fits_two_labels_is_not_asked() -> None:
    shown = record()
    seen = dataclasses.replace(
        view(0, shown), names={**NAMES, 3: "left kidney", 4: "kidney_left", 2: "something"}
    )
    asked = ASK.every(seen)
    assert {q.label for q in asked if q.kind == "rec"} > {"something", "left kidney"}
    described = {q.label for q in asked if q.kind.endswith("described")}
    assert described and described <= {"liver", "heart"}


def test_a_few_voxels_are_neither_there_nor_absent() -> None:
    shown = record()
    mask = np.zeros((6, 16, 16), np.uint8)
    mask[0, 0, :5] = 1
    mask[1:4, 5:9] = 2
    asked = ASK.every(View(shown, mask, NAMES))
    assert "liver" not in {question.label for question in asked}
    assert {q.text for q in asked if q.label == "spleen" and q.kind == "yes_no"} == {"Yes."}


@pytest.mark.parametrize(
    "values",
    [
        {"labels": ("(",)},
        {"least": 0},
        {"yes_no": -1.0},
        {"absent": 2.0},
        dict.fromkeys(KINDS, 0.0),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        MaskQuestions(**values)


def test_mixtures_draw_by_weight_and_fall_back_on_what_needs_no_crop() -> None:
    told = record(report="A cyst.", report_valid=True)
    mixed = Mixture({"ask": ASK, "report": Describe()}, {"ask": 3.0})
    assert mixed.needs_mask
    seen = view(3, told)
    drawn = [mixed(seen, np.random.default_rng(seed)) for seed in range(400)]
    share = np.mean([q is not None and q.text == "A cyst." for q in drawn])
    assert 0.19 < share < 0.31
    assert {q.question for q in drawn if q and q.text == "A cyst."} > {templates.REPORT[3]}
    assert mixed.every(seen)[-1] == Describe().every(seen)[0]
    empty = Mixture({"stored": Stored(), "report": Describe()})
    assert not empty.needs_mask
    for seed in range(5):
        asked = empty(View(told, None, NAMES), np.random.default_rng(seed))
        assert asked is not None and asked.text == "A cyst."
    with pytest.raises(ConfigError, match="asks no questions"):
        Mixture({"plain": MaskCaption()}).every(seen)
    with pytest.raises(ConfigError, match="no source 'x'"):
        Mixture({"report": Report()}, {"x": 1.0})


def test_templates_name_no_side_and_have_room_for_what_they_need() -> None:
    for name, (least, *fields) in TEMPLATES.items():
        (texts,) = (getattr(some, name) for some in WORDS if hasattr(some, name))
        assert len(set(texts)) == len(texts) >= least, name
        for text in texts:
            assert allowed(text, None) == Allowed(), text
            assert sorted(f for _, f, _, _ in Formatter().parse(text) if f is not None) == fields
            assert text[-1] in ".?" and (text[0] in '{"' or text[0].isupper()), text


def test_every_structure_has_a_description_that_fits_it_alone(sample_scans: epath.Path) -> None:
    labels = fetch.organ_names(sample_scans).values()
    told = {label: describe(label) for label in labels}
    assert not [label for label, about in told.items() if not about]
    texts = [about for some in told.values() for about in some]
    assert len(set(texts)) == len(texts) > 117
    for label, some in told.items():
        for about in some:
            assert about.split()[0] in ("the", "one", "a", "an") and about[-1].isalnum()
            assert bare(label) not in about, about
            sided = {side for side in ("left", "right") if side in label}
            assert {word for word in about.split() if word in ("left", "right")} == sided
            plain = about.removesuffix(", on the left").removesuffix(", on the right")
            assert allowed(plain, None) == Allowed(), about


def test_labels_of_other_sets_are_described_alike() -> None:
    assert describe("left kidney") == describe("kidney_left") != describe("kidney")
    assert describe("Gall bladder") == describe("gallbladder")
    assert describe("lumbar spine L1") == describe("vertebrae_L1")
    (growth, _) = describe("liver tumor")
    assert growth == "an abnormal growth in the largest gland of the body"
    assert "pocket of fluid" in describe("kidney_cyst_left")[0]
    for unknown in ("", "lumbar spine L6", "rib_left_13", "left and right kidney", "tumor", "x"):
        assert describe(unknown) == (), unknown


def test_a_description_without_variety_follows_from_the_crop() -> None:
    seen = view(0, record())
    told = {
        varied: {
            (asked.question, asked.text)
            for seed in range(20)
            if (
                asked := Describe(MaskCaption(complete=False), varied)(
                    seen, np.random.default_rng(seed)
                )
            )
        }
        for varied in (False, True)
    }
    fixed = Describe(MaskCaption(complete=False))(seen, None)
    assert fixed is not None
    assert told[False] == {(fixed.question, fixed.text)} and len(told[True]) > 15


def test_a_conversation_asks_several_true_and_different_questions() -> None:
    several = Conversation(ASK, 5)
    counts = collections.Counter()
    for seed in range(40):
        seen = view(seed, record())
        asked = several(seen, np.random.default_rng(seed))
        if asked is None:
            continue
        turns = [asked, *asked.later]
        assert all(true(turn, seen) and not turn.later for turn in asked.later)
        assert len({turn.meaning for turn in asked.later}) == len(asked.later)
        counts[len(turns)] += 1
    assert max(counts) > 2 and several(view(0, record()), None).later == ()
    assert several.every(view(0, record())) == ASK.every(view(0, record()))
    told = view(0, record(report_valid=True, report="Normal."))
    with pytest.raises(ConfigError, match="made of questions"):
        Conversation(Report(), 2)(told, np.random.default_rng(0))
