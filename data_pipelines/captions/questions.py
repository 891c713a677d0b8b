"""Questions about a crop whose answers are certain from its label map."""

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
from data_pipelines.captions.scene import Kind, QuestionTemplate, Scene
from data_pipelines.errors import ConfigError

KINDS: tuple[Kind, ...] = get_args(Kind)
_PLACES: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind not in ("yes_no", "choice"))


@dataclasses.dataclass(frozen=True)
class MaskQuestions(CaptionSource):
    """Asks what a crop shows, and where, by the record's label map.

    Nothing is asked about a label that the mask was not drawn for, nor about one of which the crop
    holds a few voxels only. Answers cannot be guessed from the words: "yes_no" and "choice" ask
    about labels that some crops of the record show and others do not, and for each of them both
    answers are equally likely over the crops; see `balance`. A volume that is taken whole has no
    other crops, so that it is asked for places, contents of boxes and masks only.

    Attributes:
      labels: Regular expressions of the names of labels to ask about; () asks about all. Best are
        those that the masks of training and evaluation share.
      least: Voxels of the record that a label must have in the crop to count as visible; it counts
        as absent if it has none, and is not asked about in between.
      yes_no: Relative frequency of "Does this volume show the liver?"
      choice: Likewise of the same question with four choices, one of which is in the crop.
      rec: Likewise of "Give the bounding box of the liver.", answered by a box.
      reg: Likewise of "What fills [box]?", answered by a name.
      seg: Likewise of "Segment the liver.", answered by a sentence with [SEG], the token that
        stands for a mask. The mask itself is not in the answer.
      rec_described: Likewise of "Where is the organ that makes bile?", answered by name and box;
        asked of labels that `describe` knows, where it fits no other label.
      reg_described: Likewise of "What fills [box], and what is that?", answered by name and
        description.
      seg_described: Likewise of "Segment the organ that makes bile, and say what it is called."
      absent: Share of the questions for a place or a mask that ask for a label which is not in the
        crop.
      released: Boxes as M3D makes them; see `boxes.mask_to_box`.
      short: Boxes of one decimal without spaces and box tokens, in answers of one form, the first:
        a third of the tokens, and none that is new. A new row of the token table starts as the mean
        of all and so is never the likeliest: frozen, it cannot be answered.
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
        instead = [kind for kind in _PLACES if getattr(self, kind) and kind != first]
        for kind in (first, *instead):
            if question := self._one(kind, scene, rng, wording=wording):
                return question
        return None

    def every(self, view: View) -> list[Question]:
        """All questions of these kinds about a crop, in fixed order and wording.

        In "choice", every label that is visible is the answer once, and the others are drawn.
        Places and masks of labels that are not in the crop are asked for if `absent` is not zero.
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
        self, kind: Kind, scene: Scene, rng: np.random.Generator, *, wording: bool
    ) -> Question | None:
        """A question of this kind, or None."""
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


def _all(kind: Kind, scene: Scene, rng: np.random.Generator, *, lacks: bool) -> Iterator[Question]:
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
    """One of the keys with its probability; None for what is left to 1."""
    values, bounds = list(chances), np.cumsum(list(chances.values()))
    place = int(np.searchsorted(bounds, rng.random(), side="right"))
    return values[place] if place < len(values) else None


def _about(names: Mapping[int, str]) -> dict[int, tuple[str, ...]]:
    """Descriptions of labels; none of those whose description fits another one."""
    about = {value: told for value, name in names.items() if (told := describe(name))}
    times = Counter(about.values())
    return {value: told for value, told in about.items() if times[told] == 1}
