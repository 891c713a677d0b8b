"""Questions from label maps: certain answers, and none that the words give away."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
import pytest

from data_pipelines import templates
from data_pipelines.boxes import mask_to_box, text_to_boxes
from data_pipelines.captions import MaskCaption, Question, Report, View
from data_pipelines.crops import Places, place
from data_pipelines.errors import ConfigError
from data_pipelines.instructions import Conversation, Describe, Mixture, Stored
from data_pipelines.questions import KINDS, MaskQuestions

NAMES = {1: "liver", 2: "spleen", 3: "kidney_left", 4: "kidney_right", 5: "heart", 6: "aorta"}
SIZE = (6, 16, 16)
ASK = MaskQuestions(least=10)


def record(**changes: Any) -> dict[str, Any]:
    """Slabs along D of six labels, the last of which nobody drew."""
    mask = np.zeros((24, 20, 20), np.uint8)
    for value, (low, high) in enumerate([(0, 8), (6, 12), (10, 20), (14, 22), (0, 24), (0, 24)], 1):
        mask[low:high, 3 * value - 3 : 3 * value - 1, 2:18] = value
    annotated = np.zeros(256, bool)
    annotated[[1, 2, 3, 4, 5]] = True
    values = {
        "mask": mask,
        "mask_valid": True,
        "annotated": annotated,
        "source": "s",
        "study_id": "1",
    }
    return values | {"report_valid": False, "qa_valid": False, "report": "", "qa": ""} | changes


def view(seed: int, shown: dict[str, Any]) -> View:
    window = place(shown["mask"].shape, SIZE, np.random.default_rng((seed, 1)))
    return View(shown, window.of(shown["mask"], 0), NAMES, Places(shown, SIZE))


def true(question: Question, seen: View) -> bool:
    assert seen.mask is not None
    values = {name: value for value, name in NAMES.items()}
    value = values[question.label]
    if question.kind == "yes_no":
        return question.text == ("Yes." if (seen.mask == value).any() else "No.")
    if question.kind == "choice":
        there = [str(text) for text in question.lettered.values() if _shown(text, seen)]
        return [question.lettered[question.text[0]]] == there
    (box,) = text_to_boxes(question.question + question.text)
    return bool((box == mask_to_box(seen.mask == value)).all())


def _shown(words: str, seen: View) -> bool:
    label = "_".join(reversed(words.split()))
    return any((seen.mask == value).any() for value, name in NAMES.items() if name == label)


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
    ask = dataclasses.replace(ASK, rec=0.0, reg=0.0)
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
    seen = View(shown, shown["mask"], NAMES, Places(shown, shown["mask"].shape))
    assert {question.kind for question in ASK.every(seen)} == {"rec", "reg"}
    lost = dataclasses.replace(ASK, yes_no=0.0, choice=0.0, reg=0.0, absent=1.0)
    answer = lost(view(0, shown), np.random.default_rng(0))
    assert answer is not None and answer.text in templates.REC_ABSENT


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
    from data_pipelines.directions import Allowed, allowed

    for name in (
        "REPORT",
        "YES_NO",
        "CHOICE",
        "REC",
        "REC_ANSWERS",
        "REC_ABSENT",
        "REG",
        "REG_ANSWERS",
    ):
        texts = getattr(templates, name)
        assert len(set(texts)) == len(texts)
        for text in texts:
            assert allowed(text, None) == Allowed(), text
            assert ("{}" in text) == (name in ("YES_NO", "REC", "REG_ANSWERS")), text
            assert ("{box}" in text) == (name in ("REC_ANSWERS", "REG")), text


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
