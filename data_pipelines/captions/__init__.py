"""Sources of the text of a sample: the record's report, or the labels in its crop.

Questions are in other modules: `questions` for label maps, `instructions` for all others.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from data_pipelines.caption import Caption
from data_pipelines.captions.anatomy import phrases, spoken
from data_pipelines.datasets.records import Record
from data_pipelines.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class View:
    """A crop of a record.

    Attributes:
      record: the record.
      mask: (d, h, w) label map of the crop, in the record's voxels; None if the source of captions
        does not need it.
      names: {label value: name}.
      others: label maps of other random crops of the record; None if there are no other crops.
    """

    record: Record
    mask: np.ndarray | None
    names: Mapping[int, str]
    others: CropMasks | None = None


class CropMasks(Protocol):
    """Label maps of random crops of one record; equal objects cut crops at equal places."""

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Returns the label map of a random crop."""

    def key(self) -> tuple[Any, ...]:
        """Returns a hashable key that differs between records, crop sizes and parts of a volume."""


class CaptionSource(abc.ABC):
    """A source of captions. Subclasses are frozen dataclasses."""

    @property
    def needs_mask(self) -> bool:
        """Returns True if the caption depends on the mask of the crop."""
        return False

    @property
    def label_questions(self) -> int:
        """Returns the maximum number of questions about labels of the mask in one text."""
        return 1

    @abc.abstractmethod
    def __call__(self, view: View, rng: np.random.Generator | None) -> Caption | None:
        """Returns a caption, or None if nothing is known for certain.

        Args:
          view: the crop.
          rng: chooses the wording; with None the wording is always the same.
        """


@dataclasses.dataclass(frozen=True)
class Report(CaptionSource):
    """A source that returns the record's report."""

    label_questions = 0

    def __call__(self, view: View, rng: np.random.Generator | None) -> Caption | None:
        """Returns a caption; see `CaptionSource`."""
        if not view.record["report_valid"]:
            return None
        text = view.record["report"]
        return Caption(text, " ".join(text.casefold().split()))


_WORDINGS = (
    "This part of the body shows {}.",
    "Visible here: {}.",
    "In the field of view: {}.",
    "One can see {}, in part or as a whole.",
    "The section passes through {}.",
    "What it shows: {}.",
)


@dataclasses.dataclass(frozen=True)
class MaskCaption(CaptionSource):
    """A source that names the structures in a crop, from the record's label map.

    Captions leave out labels for which the mask was not drawn. They also leave out slice thickness,
    contrast agent and noise: these are the same everywhere in a scan, so a model could use them to
    recognise the scan instead of its content.

    Attributes:
      labels: regular expressions for the names of labels to use; () uses all. It is best to use
        labels that the masks of training and evaluation share.
      least: minimum number of voxels of the record for a label to count as visible in the crop.
      complete: whether records get no caption if their mask was not drawn for all of these labels,
        because the caption could leave out visible structures.
    """

    labels: tuple[str, ...] = ()
    least: int = 30
    complete: bool = True

    needs_mask = True
    label_questions = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for invalid values."""
        check_labels(self.labels, self.least)

    def __call__(self, view: View, rng: np.random.Generator | None) -> Caption | None:
        """Returns a caption; see `CaptionSource`."""
        annotated = view.record["annotated"]
        labels = chosen(tuple(sorted(view.names.items())), self.labels)
        if view.mask is None or (self.complete and not annotated[list(labels)].all()):
            return None
        counts = np.bincount(view.mask.ravel(), minlength=256)
        seen = [
            name
            for value, name in labels.items()
            if annotated[value] and counts[value] >= self.least
        ]
        if not seen:
            return None
        parts = phrases(seen)
        wording = _WORDINGS[0]
        if rng is not None:
            wording = _WORDINGS[rng.integers(len(_WORDINGS))]
            parts = [parts[index] for index in rng.permutation(len(parts))]
        return Caption(wording.format(spoken(parts)), ", ".join(sorted(seen)))


def fixed(view: View) -> np.random.Generator:
    """Returns a random generator with a seed from the record, and from the mask if there is one."""
    study = zlib.crc32(f"{view.record['source']} {view.record['study_id']}".encode())
    crop = 0 if view.mask is None else zlib.crc32(view.mask.tobytes())
    return np.random.default_rng((study, crop))


def check_labels(labels: Sequence[str], least: int) -> None:
    """Raises ConfigError for invalid regular expressions or `least` below 1."""
    try:
        list(map(re.compile, labels))
    except re.error as error:
        message = f"labels: {error.pattern!r} is not a regular expression: {error}"
        raise ConfigError(message) from error
    if least < 1:
        raise ConfigError(f"least={least} must be at least 1.")


@functools.lru_cache(16)
def chosen(names: Sequence[tuple[int, str]], labels: tuple[str, ...]) -> dict[int, str]:
    """Returns the labels whose whole name matches one of the expressions; () returns all.

    Raises:
      ConfigError: an expression matches no name of the dataset.
    """
    patterns = [re.compile(label) for label in labels]
    for pattern in patterns:
        if not any(pattern.fullmatch(name) for _, name in names):
            has = ", ".join(name for _, name in names) or "none"
            raise ConfigError(
                f"labels: {pattern.pattern!r} matches no label of the dataset. Cure: choose from "
                f"the labels that are there: {has}."
            )
    return matching(names, labels)


@functools.lru_cache(16)
def matching(names: Sequence[tuple[int, str]], labels: tuple[str, ...]) -> dict[int, str]:
    """Returns the labels whose whole name matches one of the expressions; () returns all."""
    patterns = [re.compile(label) for label in labels]
    return {
        value: name
        for value, name in names
        if value and (not patterns or any(pattern.fullmatch(name) for pattern in patterns))
    }
