"""Where the text of a sample comes from: the record's report, or what its crop shows.

Questions have modules of their own: `questions` about label maps, `instructions` for the rest.
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
      record: The record.
      mask: (d, h, w) its label map where the crop is, in the record's voxels; None when the
        source of captions does not ask for it.
      names: {label value: name}.
      others: The label maps of further crops of the record, cut at random like this one; None when
        nobody can tell.
    """

    record: Record
    mask: np.ndarray | None
    names: Mapping[int, str]
    others: Looks | None = None


class Looks(Protocol):
    """Label maps of random crops of one record; equal ones look at equal places."""

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """The label map of a crop."""

    def key(self) -> tuple[Any, ...]:
        """Tells these crops from those of other records, sizes and parts; hashable."""


class CaptionSource(abc.ABC):
    """Frozen dataclasses implement this."""

    @property
    def needs_mask(self) -> bool:
        """Whether it looks into the crop, so that another crop may have another caption."""
        return False

    @abc.abstractmethod
    def __call__(self, view: View, rng: np.random.Generator | None) -> Caption | None:
        """Returns a caption, or None when there is nothing certain to say.

        Args:
          view: The crop.
          rng: Chooses the wording; None gives the same one every time.
        """


@dataclasses.dataclass(frozen=True)
class Report(CaptionSource):
    """The record's own report."""

    def __call__(self, view: View, rng: np.random.Generator | None) -> Caption | None:
        """See `CaptionSource`."""
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
    """Names what is certainly visible in a crop, by the record's label map.

    It says nothing of a label that the mask was not drawn for, and nothing of thickness, contrast
    agent or noise, which are the same all over a scan and would tell scans apart, not what they
    show.

    Attributes:
      labels: Regular expressions of the names of labels to speak of; () speaks of all. Best are
        those that the masks of training and evaluation share.
      least: Voxels of the record that a label must have in the crop to count as visible.
      complete: Give no caption to records whose mask was not drawn for all of these labels: what
        they show might be left unsaid.
    """

    labels: tuple[str, ...] = ()
    least: int = 30
    complete: bool = True

    needs_mask = True

    def __post_init__(self) -> None:
        """Checks what can be checked."""
        check_labels(self.labels, self.least)

    def __call__(self, view: View, rng: np.random.Generator | None) -> Caption | None:
        """See `CaptionSource`."""
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
    """A generator that depends on the record, and on the crop if that is looked into."""
    study = zlib.crc32(f"{view.record['source']} {view.record['study_id']}".encode())
    crop = 0 if view.mask is None else zlib.crc32(view.mask.tobytes())
    return np.random.default_rng((study, crop))


def check_labels(labels: Sequence[str], least: int) -> None:
    """Raises ConfigError if these are no regular expressions, or `least` counts no voxels."""
    try:
        list(map(re.compile, labels))
    except re.error as error:
        message = f"labels: {error.pattern!r} is no regular expression: {error}"
        raise ConfigError(message) from error
    if least < 1:
        raise ConfigError(f"least={least} must be at least 1.")


@functools.lru_cache(16)
def chosen(names: Sequence[tuple[int, str]], labels: tuple[str, ...]) -> dict[int, str]:
    """Those labels whose name one of the regular expressions matches as a whole; () chooses all.

    Raises:
      ConfigError: An expression matches no name of the dataset.
    """
    patterns = [re.compile(label) for label in labels]
    for pattern in patterns:
        if not any(pattern.fullmatch(name) for _, name in names):
            has = ", ".join(name for _, name in names[:8])
            message = f"labels: {pattern.pattern!r} matches no label of the dataset ({has}, ...)."
            raise ConfigError(message)
    return {
        value: name
        for value, name in names
        if value and (not patterns or any(pattern.fullmatch(name) for pattern in patterns))
    }
