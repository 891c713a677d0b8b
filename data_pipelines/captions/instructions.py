"""Sources of questions from the texts of a record, and mixtures of sources."""

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
    """A source of requests for a report.

    Attributes:
      source: the source of the answer: the record's report, or a caption of the crop.
      varied: whether the wording is random. False uses the first wording of question and answer
        every time. This is for small training runs, which cannot learn random wordings.
    """

    source: CaptionSource = Report()
    varied: bool = True

    label_questions = 0

    @property
    def needs_mask(self) -> bool:
        """Returns whether captions depend on the mask; see `CaptionSource`."""
        return self.source.needs_mask

    def __call__(self, view: View, rng: np.random.Generator | None) -> Question | None:
        """Returns a question; see `CaptionSource`."""
        rng = rng if self.varied else None
        told = self.source(view, rng)
        if told is None:
            return None
        number = 0 if rng is None else rng.integers(len(templates.REPORT))
        return Question(told.text, told.meaning, templates.REPORT[number], "report")

    def every(self, view: View) -> list[Question]:
        """Returns the only question, in fixed wording; [] without a report."""
        asked = self(view, None)
        return [] if asked is None else [asked]


@dataclasses.dataclass(frozen=True)
class Stored(CaptionSource):
    """A source of the questions that are stored in the record, such as those of M3D-VQA.

    Attributes:
      closed: relative frequency of questions with choices.
      open: relative frequency of the same questions without choices.
      yes_no: relative frequency of questions that are answered by yes or no.
      topics: topics to ask about: "plane", "phase", "organ", "abnormality", "location"; () for all.
      split: name of a released split, such as "vqa_test5k"; only its questions are used.
    """

    closed: float = 1.0
    open: float = 1.0
    yes_no: float = 1.0
    topics: tuple[str, ...] = ()
    split: str = ""

    label_questions = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for invalid weights or topics."""
        if min(self._weights()) < 0 or not any(self._weights()):
            raise ConfigError("weights of kinds must not be negative, and not all zero.")
        if unknown := set(self.topics) - set(qa.TOPICS.values()):
            known = ", ".join(qa.TOPICS.values())
            raise ConfigError(f"topics: {min(unknown)!r} is not one of {known}.")

    def __call__(self, view: View, rng: np.random.Generator | None) -> Question | None:
        """Returns a question; see `CaptionSource`.

        If `rng` is None, the record determines the question.
        """
        rng = fixed(view) if rng is None else rng
        asked = self.every(view)
        kinds = {kind: [q for q in asked if q.kind == kind] for kind in qa.KINDS}
        weights = np.array(self._weights()) * [bool(kinds[kind]) for kind in qa.KINDS]
        if not weights.any():
            return None
        some = kinds[qa.KINDS[rng.choice(len(weights), p=weights / weights.sum())]]
        return some[rng.integers(len(some))]

    def every(self, view: View) -> list[Question]:
        """Returns all questions of these kinds about the record, in the order of its tables."""
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
    """A source of several questions about one volume in one text.

    The volume is encoded once for all questions (LLaVA, arXiv 2304.08485, section 3). A text never
    repeats a question. Therefore the balance of `MaskQuestions` is exact only for the first
    question of each text, and approximate for the others.

    Attributes:
      source: the source of the questions.
      turns: number of questions to draw. The tokenizer leaves out those that do not fit.
    """

    source: CaptionSource
    turns: int

    @property
    def needs_mask(self) -> bool:
        """Returns whether captions depend on the mask; see `CaptionSource`."""
        return self.source.needs_mask

    @property
    def label_questions(self) -> int:
        """Returns the number of questions about labels; see `CaptionSource`."""
        return self.turns * self.source.label_questions

    def __call__(self, view: View, rng: np.random.Generator | None) -> Question | None:
        """Returns a question; see `CaptionSource`.

        Raises:
          ConfigError: the source gives texts without questions.
        """
        drawn: dict[str, Question] = {}
        for _ in range(1 if rng is None else self.turns):
            told = self.source(view, rng)
            if told is not None and not isinstance(told, Question):
                raise ConfigError("conversations are made of questions. Cure: use Describe(...).")
            if told is not None:
                drawn.setdefault(told.meaning, told)
        if not drawn:
            return None
        first, *later = drawn.values()
        return dataclasses.replace(first, meaning=" ".join(drawn), later=tuple(later))

    def every(self, view: View) -> list[Question]:
        """Returns all questions of the source as single questions.

        In a conversation, earlier answers could reveal later ones.
        """
        return self.source.every(view)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Mixture(CaptionSource):
    """A source that draws one of several sources for every sample.

    If the drawn source has no text for a record, another source is used, but only one that does not
    need the mask. Sources that need the mask stay balanced only if their use does not depend on
    the results of other sources.

    Attributes:
      sources: the sources by name.
      weights: relative frequencies by name; 1 for names that are missing.
    """

    sources: Mapping[str, CaptionSource]
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def needs_mask(self) -> bool:
        """Returns whether captions depend on the mask; see `CaptionSource`."""
        return any(source.needs_mask for source in self.sources.values())

    @property
    def label_questions(self) -> int:
        """Returns the number of questions about labels; see `CaptionSource`."""
        drawn = [name for name, weight in self._weights().items() if weight]
        return max(self.sources[name].label_questions for name in drawn)

    def __post_init__(self) -> None:
        """Raises ConfigError for invalid sources or weights."""
        if unknown := set(self.weights) - set(self.sources):
            raise ConfigError(f"weights: there is no source {min(unknown)!r}.")
        if (
            not self.sources
            or min(self._weights().values()) < 0
            or not any(self._weights().values())
        ):
            raise ConfigError("sources must not be empty, nor weights negative or all zero.")

    def __call__(self, view: View, rng: np.random.Generator | None) -> Caption | None:
        """Returns a caption of one source; see `CaptionSource`.

        If `rng` is None, record and crop determine the source.
        """
        weights = {name: weight for name, weight in self._weights().items() if weight}
        names, shares = list(weights), np.array(list(weights.values()))
        draw = fixed(view) if rng is None else rng
        first, *others = draw.choice(names, len(names), replace=False, p=shares / shares.sum())
        for name in (first, *(name for name in others if not self.sources[name].needs_mask)):
            if caption := self.sources[name](view, rng):
                return caption
        return None

    def every(self, view: View) -> list[Question]:
        """Returns all questions of the sources, one source after the other.

        Raises:
          ConfigError: a source gives texts without questions.
        """
        asking = {
            n: getattr(s, "every", None) for n, s in self.sources.items() if self._weights()[n]
        }
        if silent := [name for name, every in asking.items() if every is None]:
            raise ConfigError(
                f"the source {silent[0]!r} asks no questions. Cure: use Describe(...)."
            )
        return [question for every in asking.values() if every for question in every(view)]

    def _weights(self) -> dict[str, float]:
        return {name: self.weights.get(name, 1.0) for name in self.sources}
