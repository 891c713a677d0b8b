"""Questions about a crop whose answers are certain from its label map."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from data_pipelines import boxes, templates
from data_pipelines.anatomy import phrases
from data_pipelines.balance import Odds, odds
from data_pipelines.captions import CaptionSource, Question, View, check_labels, chosen, fixed
from data_pipelines.datasets.qa import with_choices
from data_pipelines.errors import ConfigError

Kind = Literal["yes_no", "choice", "rec", "reg"]
KINDS: tuple[Kind, ...] = ("yes_no", "choice", "rec", "reg")
_CHOICES = 4
_APART = 0.5
"""Two structures whose boxes overlap more (IoU) cannot be told apart by their boxes."""


@dataclasses.dataclass(frozen=True)
class MaskQuestions(CaptionSource):
    """Asks what a crop shows, and where, by the record's label map.

    Nothing is asked about a label that the mask was not drawn for, nor about one of which the crop
    holds a few voxels only. Answers cannot be guessed from the words: "yes_no" and "choice" ask
    about labels that some crops of the record show and others do not, and for each of them both
    answers are equally likely over the crops; see `balance`. A volume that is taken whole has no
    other crops, so that it is asked "rec" and "reg" only.

    Attributes:
      labels: Regular expressions of the names of labels to ask about; () asks about all. Best are
        those that the masks of training and evaluation share.
      least: Voxels of the record that a label must have in the crop to count as visible; it counts
        as absent if it has none, and is not asked about in between.
      yes_no: Relative frequency of "Does this volume show the liver?"
      choice: Likewise of the same question with four choices, one of which is in the crop.
      rec: Likewise of "Where do you see the liver?", answered by a box.
      reg: Likewise of "What fills [box]?", answered by a name.
      absent: Share of the questions "rec" that ask for a label which is not in the crop.
      released: Boxes as M3D makes them; see `boxes.mask_to_box`.
    """

    labels: tuple[str, ...] = ()
    least: int = 30
    yes_no: float = 1.0
    choice: float = 1.0
    rec: float = 1.0
    reg: float = 1.0
    absent: float = 0.0
    released: bool = False

    needs_mask = True

    def __post_init__(self) -> None:
        """Raises ConfigError if values cannot work."""
        check_labels(self.labels, self.least)
        weights = [getattr(self, kind) for kind in KINDS]
        if min(weights) < 0 or not any(weights):
            raise ConfigError("weights of kinds must not be negative, and not all zero.")
        if not 0 <= self.absent <= 1:
            raise ConfigError(f"absent={self.absent} must be a share, 0 to 1.")

    def __call__(self, view: View, rng: np.random.Generator | None) -> Question | None:
        """See `CaptionSource`; without `rng` the question follows from record and crop."""
        scene = self._scene(view)
        if scene is None:
            return None
        wording = rng is not None
        rng = fixed(view) if rng is None else rng
        weights = np.array([getattr(self, kind) for kind in KINDS])
        first = KINDS[rng.choice(len(KINDS), p=weights / weights.sum())]
        # Those that are balanced must not be asked more often where others have nothing to ask.
        others: tuple[Kind, ...] = ("rec", "reg")
        instead = [kind for kind in others if getattr(self, kind) and kind != first]
        for kind in (first, *instead):
            if question := self._one(kind, scene, rng, wording=wording):
                return question
        return None

    def every(self, view: View) -> list[Question]:
        """All questions of these kinds about a crop, in fixed order and wording.

        In "choice", every label that is visible is the answer once, and the others are drawn.
        """
        scene = self._scene(view)
        if scene is None:
            return []
        return [q for kind in KINDS if getattr(self, kind) for q in _all(kind, scene, fixed(view))]

    def _scene(self, view: View) -> _Scene | None:
        if view.mask is None or not view.record["mask_valid"]:
            return None
        annotated = view.record["annotated"]
        names = chosen(tuple(sorted(view.names.items())), self.labels)
        values = [value for value in names if annotated[value]]
        counts = np.bincount(view.mask.ravel(), minlength=256)
        visible = [value for value in values if counts[value] >= self.least]
        missing = [value for value in values if not counts[value]]
        if not visible and not missing:
            return None
        told = odds(view.others, tuple(values), visible, missing, self.least)
        return _Scene(view.mask, names, visible, missing, told, self.released)

    def _one(
        self, kind: Kind, scene: _Scene, rng: np.random.Generator, *, wording: bool
    ) -> Question | None:
        """A question of this kind, or None."""
        match kind:
            case "yes_no":
                drawn = _drawn({**scene.odds.yes, **scene.odds.no}, rng)
                asked = None if drawn is None else scene.yes_no(drawn)
            case "choice":
                drawn = _drawn(scene.odds.yes, rng)
                asked = None if drawn is None else scene.choice(drawn, rng)
            case "rec":
                lacks = bool(scene.missing) and rng.random() < self.absent
                drawn = _any(scene.missing if lacks else scene.visible, rng)
                asked = None if drawn is None else scene.rec(drawn)
            case "reg":
                drawn = _any(scene.distinct(), rng)
                asked = None if drawn is None else scene.reg(drawn)
        if asked is None:
            return None
        return asked.worded(rng if wording else None)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A question before it is put into words.

    Attributes:
      kind: its kind.
      label: name of the label that it is about.
      questions: ways to ask.
      answers: ways to answer.
      name: of the structure, in words.
      box: its box as text.
      choices: see `Question`.
      meaning: of question and answer.
    """

    kind: Kind
    label: str
    questions: Sequence[str]
    answers: Sequence[str]
    meaning: str
    name: str = ""
    box: str = ""
    choices: tuple[str, ...] = ()

    def worded(self, rng: np.random.Generator | None) -> Question:
        """In the first words; with `rng` in any."""
        question, answer = (
            texts[0 if rng is None else int(rng.integers(len(texts)))]
            for texts in (self.questions, self.answers)
        )
        question, answer = (text.format(self.name, box=self.box) for text in (question, answer))
        if self.choices:
            question = with_choices(question, self.choices)
        answer = answer[0].upper() + answer[1:]
        return Question(answer, self.meaning, question, self.kind, self.label, self.choices)


@dataclasses.dataclass(frozen=True)
class _Scene:
    """What is known of a crop."""

    mask: np.ndarray
    names: dict[int, str]
    visible: list[int]
    missing: list[int]
    odds: Odds
    released: bool

    def yes_no(self, value: int) -> _Asked:
        answer = "Yes." if value in self.visible else "No."
        return self._asked("yes_no", value, templates.YES_NO, (answer,), answer)

    def choice(self, value: int, rng: np.random.Generator) -> _Asked | None:
        others = list(self.odds.wrong)
        if len(others) < _CHOICES - 1:
            return None
        weights = np.array([self.odds.wrong[other] for other in others])
        wrong = rng.choice(others, _CHOICES - 1, False, weights / weights.sum())
        options = rng.permutation([value, *wrong])
        texts = tuple(bare(self.names[int(option)]) for option in options)
        letter = chr(ord("A") + int(np.flatnonzero(options == value)[0]))
        answer = f"{letter}. {bare(self.names[value])}"
        asked = self._asked("choice", value, templates.CHOICE, (answer,), answer)
        return dataclasses.replace(asked, choices=texts)

    def rec(self, value: int) -> _Asked:
        if value in self.missing:
            return self._asked("rec", value, templates.REC, templates.REC_ABSENT, "absent")
        box = self._box(value)
        return self._asked("rec", value, templates.REC, templates.REC_ANSWERS, box, box)

    def reg(self, value: int) -> _Asked:
        box = self._box(value)
        return self._asked("reg", value, templates.REG, templates.REG_ANSWERS, box, box)

    def distinct(self) -> list[int]:
        """Visible labels whose boxes are not those of others, too."""
        there = [v for v in np.unique(self.mask).tolist() if v]
        found = {value: boxes.mask_to_box(self.mask == value) for value in there}
        return [
            value
            for value in self.visible
            if all(boxes.iou(found[value], box) < _APART for v, box in found.items() if v != value)
        ]

    def _box(self, value: int) -> str:
        box = boxes.mask_to_box(self.mask == value, released=self.released)
        return f"{boxes.START}{boxes.box_to_text(box)}{boxes.END}"

    def _asked(
        self,
        kind: Kind,
        value: int,
        questions: Sequence[str],
        answers: Sequence[str],
        meaning: str,
        box: str = "",
    ) -> _Asked:
        label = self.names[value]
        (name,) = phrases([label])
        return _Asked(kind, label, questions, answers, f"{kind} {label} {meaning}", name, box)


def bare(label: str) -> str:
    """The name of a label in words, without an article."""
    return phrases([label])[0].removeprefix("the ")


def _all(kind: Kind, scene: _Scene, rng: np.random.Generator) -> Iterator[Question]:
    asked: Iterator[_Asked | None]
    match kind:
        case "yes_no":
            asked = map(scene.yes_no, sorted({*scene.odds.yes, *scene.odds.no}))
        case "choice":
            asked = (scene.choice(value, rng) for value in scene.odds.yes)
        case "rec":
            asked = map(scene.rec, scene.visible)
        case "reg":
            asked = map(scene.reg, scene.distinct())
    return (one.worded(None) for one in asked if one is not None)


def _drawn(chances: dict[int, float], rng: np.random.Generator) -> int | None:
    """One of the keys with its probability; None for what is left to 1."""
    values, bounds = list(chances), np.cumsum(list(chances.values()))
    place = int(np.searchsorted(bounds, rng.random(), side="right"))
    return values[place] if place < len(values) else None


def _any(values: Sequence[int], rng: np.random.Generator) -> int | None:
    return values[int(rng.integers(len(values)))] if values else None
