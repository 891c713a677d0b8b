"""Questions about a crop that its label map answers with certainty."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import get_args

import numpy as np

from data_pipelines.caption import Question
from data_pipelines.captions import CaptionSource, View, check_labels, chosen, fixed
from data_pipelines.captions.balance import odds
from data_pipelines.captions.descriptions import describe
from data_pipelines.captions.scene import QuestionKind, QuestionTemplate, Scene
from data_pipelines.errors import ConfigError

KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)
_PLACES: tuple[QuestionKind, ...] = tuple(
    kind for kind in KINDS if kind not in ("yes_no", "choice")
)


@dataclasses.dataclass(frozen=True)
class MaskQuestions(CaptionSource):
    """A source of questions about the content of a crop, from the record's label map.

    No question is about a label for which the mask was not drawn, or which has only a few voxels in
    the crop. The words of a question do not reveal its answer: "yes_no" and "choice" use only
    labels that are visible in some crops of the record and absent from others. For each of these
    labels both answers are equally likely over the crops; see `balance`. A volume that is taken
    whole has no other crops, so its questions are about places, contents of boxes and masks only.

    Attributes:
      labels: regular expressions for the names of labels to ask about; () asks about all. It is
        best to use labels that the masks of training and evaluation share.
      least: minimum number of voxels of the record for a label to count as visible in the crop. A
        label with no voxel counts as absent. There are no questions about labels in between.
      yes_no: relative frequency of "Does this volume show the liver?"
      choice: relative frequency of the same question with four choices, one of them in the crop.
      rec: relative frequency of "Give the bounding box of the liver."; the answer is a box.
      reg: relative frequency of "What fills [box]?"; the answer is a name.
      seg: relative frequency of "Segment the liver."; the answer is a sentence with [SEG], the
        token that represents a mask. The mask itself is not in the answer.
      rec_described: relative frequency of "Where is the organ that makes bile?"; the answer is a
        name and a box. Only for labels with a description from `describe` that fits no other label.
      reg_described: relative frequency of "What fills [box], and what is that?"; the answer is a
        name and a description.
      seg_described: relative frequency of "Segment the organ that makes bile, and say what it is
        called."
      absent: share of the questions for a place or a mask that are about a label which is not in
        the crop.
      released: whether boxes are made as in M3D; see `boxes.mask_to_box`.
      short: whether boxes have one decimal and no spaces or box tokens, and answers always use the
        first template. Such answers have a third of the tokens, and no new tokens. A new row of the
        token embedding starts as the mean of all rows, so it never has the highest probability. If
        the embedding is frozen, the model can never answer with it.
    """

    labels: tuple[str, ...] = ()
    least: int = 30
    yes_no: float = 1.0
    choice: float = 1.0
    rec: float = 1.0
    reg: float = 1.0
    seg: float = 0.0
    rec_described: float = 0.0
    reg_described: float = 0.0
    seg_described: float = 0.0
    absent: float = 0.0
    released: bool = False
    short: bool = False

    needs_mask = True

    def __post_init__(self) -> None:
        """Raises ConfigError for invalid labels, weights or shares."""
        check_labels(self.labels, self.least)
        weights = [getattr(self, kind) for kind in KINDS]
        if min(weights) < 0 or not any(weights):
            raise ConfigError("weights of kinds must not be negative, and not all zero.")
        if not 0 <= self.absent <= 1:
            raise ConfigError(f"absent={self.absent} must be a share from 0 to 1.")

    def __call__(self, view: View, rng: np.random.Generator | None) -> Question | None:
        """Returns a question; see `CaptionSource`.

        If `rng` is None, record and crop determine the question.
        """
        scene = self._scene(view)
        if scene is None:
            return None
        wording = rng is not None
        rng = fixed(view) if rng is None else rng
        weights = np.array([getattr(self, kind) for kind in KINDS])
        first = KINDS[rng.choice(len(KINDS), p=weights / weights.sum())]
        # Balanced kinds do not replace other kinds that have no question: that breaks the balance.
        instead = [kind for kind in _PLACES if getattr(self, kind) and kind != first]
        for kind in (first, *instead):
            if question := self._one(kind, scene, rng, wording=wording):
                return question
        return None

    def every(self, view: View) -> list[Question]:
        """Returns all questions of these kinds about a crop, in fixed order and wording.

        In "choice", every visible label is the answer once, and the wrong choices are drawn.
        Questions for places and masks of absent labels are there if `absent` is not zero.
        """
        scene = self._scene(view)
        if scene is None:
            return []
        kinds = [kind for kind in KINDS if getattr(self, kind)]
        rng, lacks = fixed(view), self.absent > 0
        return [q for kind in kinds for q in _all(kind, scene, rng, lacks=lacks)]

    def _scene(self, view: View) -> Scene | None:
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
        about = _about({value: name for value, name in view.names.items() if annotated[value]})
        return Scene(view.mask, names, visible, missing, told, about, self.released, self.short)

    def _one(
        self, kind: QuestionKind, scene: Scene, rng: np.random.Generator, *, wording: bool
    ) -> Question | None:
        """Returns a question of this kind, or None if there is none."""
        match kind:
            case "yes_no":
                drawn = _drawn({**scene.odds.yes, **scene.odds.no}, rng)
                asked = None if drawn is None else scene.yes_no(drawn)
            case "choice":
                drawn = _drawn(scene.odds.yes, rng)
                asked = None if drawn is None else scene.choice(drawn, rng)
            case _:
                lacks = bool(scene.missing) and rng.random() < self.absent
                values = scene.placed(kind, lacks=lacks)
                asked = scene.place(kind, values[rng.integers(len(values))]) if values else None
        if asked is None:
            return None
        return asked.worded(rng if wording else None)


def _all(
    kind: QuestionKind, scene: Scene, rng: np.random.Generator, *, lacks: bool
) -> Iterator[Question]:
    templates: Iterator[QuestionTemplate | None]
    match kind:
        case "yes_no":
            templates = map(scene.yes_no, sorted({*scene.odds.yes, *scene.odds.no}))
        case "choice":
            templates = (scene.choice(value, rng) for value in scene.odds.yes)
        case _:
            absent = scene.placed(kind, lacks=True) if lacks and not kind.startswith("reg") else []
            templates = (scene.place(kind, value) for value in [*scene.placed(kind), *absent])
    return (one.worded(None) for one in templates if one is not None)


def _drawn(chances: dict[int, float], rng: np.random.Generator) -> int | None:
    """Draws a key with its probability; returns None with the remaining probability."""
    values, bounds = list(chances), np.cumsum(list(chances.values()))
    place = int(np.searchsorted(bounds, rng.random(), side="right"))
    return values[place] if place < len(values) else None


def _about(names: Mapping[int, str]) -> dict[int, tuple[str, ...]]:
    """Returns descriptions of labels, without descriptions that fit several labels."""
    about = {value: told for value, name in names.items() if (told := describe(name))}
    times = Counter(about.values())
    return {value: told for value, told in about.items() if times[told] == 1}
