"""Facts about a crop from its label map, and questions that these facts answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from data_pipelines import boxes
from data_pipelines.caption import Question
from data_pipelines.captions import place_templates as places
from data_pipelines.captions import segment_templates as masks
from data_pipelines.captions import templates
from data_pipelines.captions.anatomy import phrases
from data_pipelines.captions.balance import Odds
from data_pipelines.datasets.qa import with_choices
from data_pipelines.text.llm_tokenizer import SEGMENT

QuestionKind = Literal[
    "yes_no", "choice", "rec", "reg", "seg", "rec_described", "reg_described", "seg_described"
]
_CHOICES = 4
_APART = 0.5
"""Two structures whose boxes overlap more (IoU) cannot be told apart by their boxes."""
_PLACE: Mapping[str, tuple[Sequence[str], Sequence[str], Sequence[str]]] = {
    "rec": (places.REC, places.REC_ANSWERS, places.REC_ABSENT),
    "reg": (places.REG, places.REG_ANSWERS, ()),
    "rec_described": (
        places.REC_DESCRIBED,
        places.REC_DESCRIBED_ANSWERS,
        places.REC_DESCRIBED_ABSENT,
    ),
    "reg_described": (places.REG_DESCRIBED, places.REG_DESCRIBED_ANSWERS, ()),
    "seg": (masks.SEG, masks.SEG_ANSWERS, masks.SEG_ABSENT),
    "seg_described": (
        masks.SEG_DESCRIBED,
        masks.SEG_DESCRIBED_ANSWERS,
        masks.SEG_DESCRIBED_ABSENT,
    ),
}
"""Templates of questions, of answers, and of answers for absent structures, by kind."""


@dataclasses.dataclass(frozen=True)
class QuestionTemplate:
    """A question before its wording is chosen.

    Attributes:
      kind: kind of the question.
      label: name of the label in the question.
      questions: templates of the question.
      answers: templates of the answer.
      name: name of the structure in words.
      box: box of the structure as text.
      about: descriptions of the structure.
      choices: see `Question`.
      meaning: meaning of question and answer.
    """

    kind: QuestionKind
    label: str
    questions: Sequence[str]
    answers: Sequence[str]
    meaning: str
    name: str = ""
    box: str = ""
    about: Sequence[str] = ("",)
    choices: tuple[str, ...] = ()

    def worded(self, rng: np.random.Generator | None) -> Question:
        """Returns the question in a random wording, or in the first wording if `rng` is None."""
        question, answer, about = (
            texts[0 if rng is None else int(rng.integers(len(texts)))]
            for texts in (self.questions, self.answers, self.about)
        )
        question, answer = (
            text.format(self.name, box=self.box, about=about, mask=SEGMENT)
            for text in (question, answer)
        )
        if self.choices:
            question = with_choices(question, self.choices)
        answer = answer[0].upper() + answer[1:]
        return Question(answer, self.meaning, question, self.kind, self.label, self.choices)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Facts about a crop from its label map.

    Attributes:
      mask: label map of the crop.
      names: {label value: name} of the labels to ask about.
      visible: values of the labels that the crop shows.
      missing: values of the labels without a voxel in the crop.
      odds: probabilities of balanced questions, which do not reveal their answers.
      about: {label value: descriptions}; only descriptions that fit no other label.
      released: see `boxes.mask_to_box`.
      short: see `MaskQuestions`.
    """

    mask: np.ndarray
    names: Mapping[int, str]
    visible: list[int]
    missing: list[int]
    odds: Odds
    about: Mapping[int, tuple[str, ...]]
    released: bool
    short: bool

    def yes_no(self, value: int) -> QuestionTemplate:
        """Asks whether the crop shows a label."""
        answer = "Yes." if value in self.visible else "No."
        return self._template("yes_no", value, templates.YES_NO, (answer,), answer)

    def choice(self, value: int, rng: np.random.Generator) -> QuestionTemplate | None:
        """Asks which of four labels the crop shows; returns None if too few labels are absent."""
        others = list(self.odds.wrong)
        if len(others) < _CHOICES - 1:
            return None
        weights = np.array([self.odds.wrong[other] for other in others])
        wrong = rng.choice(others, _CHOICES - 1, False, weights / weights.sum())
        options = rng.permutation([value, *wrong])
        texts = tuple(bare(self.names[int(option)]) for option in options)
        letter = chr(ord("A") + int(np.flatnonzero(options == value)[0]))
        answer = f"{letter}. {bare(self.names[value])}"
        template = self._template("choice", value, templates.CHOICE, (answer,), answer)
        return dataclasses.replace(template, choices=texts)

    def placed(self, kind: QuestionKind, *, lacks: bool = False) -> list[int]:
        """Returns labels for questions about place, box or mask; with `lacks`, absent labels."""
        values = self.missing if lacks else self.visible
        if kind.startswith("reg"):
            values = self.distinct()
        return [v for v in values if v in self.about] if kind.endswith("described") else values

    def place(self, kind: QuestionKind, value: int) -> QuestionTemplate:
        """Asks for the place of a label, for the content of its box, or for its mask."""
        questions, answers, absent = _PLACE[kind]
        about = self.about.get(value, ("",))
        if value in self.missing:
            template = self._template(kind, value, questions, absent, "absent")
            return dataclasses.replace(template, about=about)
        box, answers = self._box(value), answers[:1] if self.short else answers
        template = self._template(kind, value, questions, answers, box)
        return dataclasses.replace(template, about=about, box=box)

    def _box(self, value: int) -> str:
        mask = self.mask == value
        if self.short:
            short = boxes.mask_to_box(mask, released=self.released, decimals=1)
            return boxes.box_to_short_text(short)
        box = boxes.mask_to_box(mask, released=self.released)
        return f"{boxes.START}{boxes.box_to_text(box)}{boxes.END}"

    def distinct(self) -> list[int]:
        """Returns the visible labels whose boxes differ from those of all others."""
        there = [v for v in np.unique(self.mask).tolist() if v]
        found = {value: boxes.mask_to_box(self.mask == value) for value in there}
        return [
            value
            for value in self.visible
            if all(boxes.iou(found[value], box) < _APART for v, box in found.items() if v != value)
        ]

    def _template(
        self,
        kind: QuestionKind,
        value: int,
        questions: Sequence[str],
        answers: Sequence[str],
        meaning: str,
    ) -> QuestionTemplate:
        label = self.names[value]
        (name,) = phrases([label])
        return QuestionTemplate(kind, label, questions, answers, f"{kind} {label} {meaning}", name)


def bare(label: str) -> str:
    """Returns the name of a label in words, without an article."""
    return phrases([label])[0].removeprefix("the ")
