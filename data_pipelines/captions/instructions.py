"""Sources of questions that a record brings along, and mixtures of sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from data_pipelines.caption import Caption, Question
from data_pipelines.captions import CaptionSource, Report, View, fixed, templates
from data_pipelines.datasets import qa
from data_pipelines.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Describe(CaptionSource):
    """Asks for a report.

    Attributes:
      source: What is answered: the record's report, or what the crop shows.
      varied: False asks in the same words every time, and has the answer in its first wording and
        order. For small trainings: what is drawn anew cannot be learned.
    """

    source: CaptionSource = Report()
    varied: bool = True

    @property
    def needs_mask(self) -> bool:
        """See `CaptionSource`."""
        return self.source.needs_mask

    def __call__(self, view: View, rng: np.random.Generator | None) -> Question | None:
        """See `CaptionSource`."""
        rng = rng if self.varied else None
        told = self.source(view, rng)
        if told is None:
            return None
        number = 0 if rng is None else rng.integers(len(templates.REPORT))
        return Question(told.text, told.meaning, templates.REPORT[number], "report")

    def every(self, view: View) -> list[Question]:
        """The one question that there is, in fixed wording; [] without a report."""
        asked = self(view, None)
        return [] if asked is None else [asked]


@dataclasses.dataclass(frozen=True)
class Stored(CaptionSource):
    """The record's own questions, such as M3D-VQA's.

    Attributes:
      closed: Relative frequency of questions with choices.
      open: Likewise of the same questions without them.
      yes_no: Likewise of questions that are answered by yes or no.
      topics: What may be asked about: "plane", "phase", "organ", "abnormality", "location"; () for
        everything.
      split: Name of a released split: only its questions are asked, such as "vqa_test5k".
    """

    closed: float = 1.0
    open: float = 1.0
    yes_no: float = 1.0
    topics: tuple[str, ...] = ()
    split: str = ""

    def __post_init__(self) -> None:
        """Raises ConfigError if values cannot work."""
        if min(self._weights()) < 0 or not any(self._weights()):
            raise ConfigError("weights of kinds must not be negative, and not all zero.")
        if unknown := set(self.topics) - set(qa.TOPICS.values()):
            known = ", ".join(qa.TOPICS.values())
            raise ConfigError(f"topics: {min(unknown)!r} is none of {known}.")

    def __call__(self, view: View, rng: np.random.Generator | None) -> Question | None:
        """See `CaptionSource`; without `rng` the question follows from the record."""
        rng = fixed(view) if rng is None else rng
        asked = self.every(view)
        kinds = {kind: [q for q in asked if q.kind == kind] for kind in qa.KINDS}
        weights = np.array(self._weights()) * [bool(kinds[kind]) for kind in qa.KINDS]
        if not weights.any():
            return None
        some = kinds[qa.KINDS[rng.choice(len(weights), p=weights / weights.sum())]]
        return some[rng.integers(len(some))]

    def every(self, view: View) -> list[Question]:
        """All questions of these kinds about the record, in the order of its tables."""
        if not view.record["qa_valid"]:
            return []
        wanted = [k for k, weight in zip(qa.KINDS, self._weights(), strict=True) if weight]
        return [
            question
            for row in qa.from_text(view.record["qa"])
            if (not self.topics or row.topic in self.topics)
            and (not self.split or self.split in row.splits)
            for question in row.questions()
            if question.kind in wanted
        ]

    def _weights(self) -> tuple[float, ...]:
        return tuple(getattr(self, kind) for kind in qa.KINDS)


@dataclasses.dataclass(frozen=True)
class Conversation(CaptionSource):
    """Several questions about one volume, one after the other in one text.

    The volume is encoded once for all of them (LLaVA, arXiv 2304.08485, section 3). A question that
    was drawn before is not put again, so that answers which `MaskQuestions` balances are nearly,
    not exactly, as often right as wrong; the first question of each text is balanced.

    Attributes:
      source: What is asked.
      turns: Questions that are drawn; what does not fit into the tokens is left out there.
    """

    source: CaptionSource
    turns: int

    @property
    def needs_mask(self) -> bool:
        """See `CaptionSource`."""
        return self.source.needs_mask

    def __call__(self, view: View, rng: np.random.Generator | None) -> Question | None:
        """See `CaptionSource`.

        Raises:
          ConfigError: the source asks nothing.
        """
        drawn: dict[str, Question] = {}
        for _ in range(1 if rng is None else self.turns):
            told = self.source(view, rng)
            if told is not None and not isinstance(told, Question):
                raise ConfigError("conversations are made of questions. Cure: Describe(...).")
            if told is not None:
                drawn.setdefault(told.meaning, told)
        if not drawn:
            return None
        first, *later = drawn.values()
        return dataclasses.replace(first, meaning=" ".join(drawn), later=tuple(later))

    def every(self, view: View) -> list[Question]:
        """All questions of the source, each by itself: nobody reads an answer off another."""
        return self.source.every(view)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Mixture(CaptionSource):
    """One of several sources, each time drawn anew.

    Where the drawn one has nothing to say of a record, another one speaks, unless that looks into
    the crop: its questions would then depend on what others do not find.

    Attributes:
      sources: The sources by name.
      weights: Relative frequencies by the same names; 1 where there is none.
    """

    sources: Mapping[str, CaptionSource]
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def needs_mask(self) -> bool:
        """See `CaptionSource`."""
        return any(source.needs_mask for source in self.sources.values())

    def __post_init__(self) -> None:
        """Raises ConfigError if values cannot work."""
        if unknown := set(self.weights) - set(self.sources):
            raise ConfigError(f"weights: there is no source {min(unknown)!r}.")
        if (
            not self.sources
            or min(self._weights().values()) < 0
            or not any(self._weights().values())
        ):
            raise ConfigError("sources must not be empty, nor weights negative or all zero.")

    def __call__(self, view: View, rng: np.random.Generator | None) -> Caption | None:
        """See `CaptionSource`; without `rng` the source follows from record and crop."""
        weights = {name: weight for name, weight in self._weights().items() if weight}
        names, shares = list(weights), np.array(list(weights.values()))
        draw = fixed(view) if rng is None else rng
        first, *others = draw.choice(names, len(names), replace=False, p=shares / shares.sum())
        for name in (first, *(name for name in others if not self.sources[name].needs_mask)):
            if caption := self.sources[name](view, rng):
                return caption
        return None

    def every(self, view: View) -> list[Question]:
        """All questions of the sources that ask, one source after the other.

        Raises:
          ConfigError: a source asks nothing.
        """
        asking = {
            n: getattr(s, "every", None) for n, s in self.sources.items() if self._weights()[n]
        }
        if silent := [name for name, every in asking.items() if every is None]:
            raise ConfigError(f"the source {silent[0]!r} asks no questions. Cure: Describe(...).")
        return [question for every in asking.values() if every for question in every(view)]

    def _weights(self) -> dict[str, float]:
        return {name: self.weights.get(name, 1.0) for name in self.sources}
