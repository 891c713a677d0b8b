"""The mask of a crop: all labels, groups of labels, or the structure in a question."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.caption import Question
from data_pipelines.errors import ConfigError
from data_pipelines.fields.base import Field, Sample, Spatial
from data_pipelines.fields.text import Text
from data_pipelines.spatial import Size
from data_pipelines.specs import ArraySpec
from data_pipelines.volume import NOT_LABELLED

if TYPE_CHECKING:
    from data_pipelines.datasets import RecordSource

_VALUES = 256


@dataclasses.dataclass(frozen=True)
class Mask(Field):
    """The mask of the crop, resampled by nearest neighbour if the crop is resized.

    Without groups, a sample has
      NAME: (D, H, W) uint8 label map, 0 for background and 255 where nothing was labelled;
      NAME_known: bool (256,), True for labels for which the mask was drawn. Where it is False, the
        absence of the label in the mask does not mean that the structure is absent.
    With G groups,
      NAME: (D, H, W, G) uint8, 1 where a voxel has a label of the group, else 0, and 255 where
        nothing was labelled. Groups may overlap, such as a liver that includes its tumours;
      NAME_known: bool (G,), True if the record's dataset has labels of the group and the mask was
        drawn for all of them.

    Attributes:
      groups: {name of a group: regular expressions that match the names of its labels}.
    """

    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    needs_mask = True

    def __post_init__(self) -> None:
        """Raises ConfigError for a group without labels or an invalid regular expression."""
        for name, patterns in self.groups.items():
            if not patterns:
                raise ConfigError(f"groups: {name!r} has no labels. Cure: name one.")
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ConfigError(
                        f"groups: {pattern!r} is not a regular expression: {error}"
                    ) from error

    def spec(self, name: str, size: Size) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes; see `Field.spec`."""
        groups = (len(self.groups),) if self.groups else ()
        return {
            name: ArraySpec((*size, *groups), np.dtype(np.uint8)),
            f"{name}_known": ArraySpec(groups or (_VALUES,), np.dtype(np.bool_)),
        }

    def spatial(self, name: str) -> dict[str, Spatial]:
        """Returns how the arrays move; see `Field.spatial`."""
        return {name: Spatial("mask", (0, 1, 2))}

    def check(self, name: str, sources: Sequence[RecordSource]) -> None:
        """Checks that every expression matches a label of a dataset; see `Field.check`."""
        labels = sorted({label for source in sources for label in source.mask_names.values()})
        for pattern in (p for patterns in self.groups.values() for p in patterns):
            if not any(re.fullmatch(pattern, label) for label in labels):
                has = ", ".join(labels[:8]) or "none"
                raise ConfigError(
                    f"data.fields.{name}.groups: {pattern!r} matches no label of the datasets. "
                    f"Cure: change it; the first labels are: {has}."
                )

    def __call__(self, name: str, sample: Sample) -> dict[str, np.ndarray]:
        """Returns the arrays of one sample; see `Field.__call__`."""
        annotated = sample.record["annotated"]
        if not self.groups:
            return {name: sample.mask, f"{name}_known": annotated}
        groups = [_matching(sample.mask_names, patterns) for patterns in self.groups.values()]
        known = [bool(values) and bool(annotated[values].all()) for values in groups]
        masks = [_binary(sample.mask, values) for values in groups]
        return {name: np.stack(masks, axis=-1), f"{name}_known": np.array(known)}


@dataclasses.dataclass(frozen=True)
class AskedMask(Field):
    """The mask of the structure that the question of the sample is about.

    A sample has
      NAME: (D, H, W) uint8, 1 in the structure, else 0, and 255 where nothing was labelled. All
        zeros if the crop does not show the structure;
      NAME_valid: True if the sample has a question, and the question is about a label for which
        the mask was drawn.
    """

    needs_mask = True

    def spec(self, name: str, size: Size) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes; see `Field.spec`."""
        return {
            name: ArraySpec(size, np.dtype(np.uint8)),
            f"{name}_valid": ArraySpec((), np.dtype(np.bool_)),
        }

    def spatial(self, name: str) -> dict[str, Spatial]:
        """Returns how the arrays move; see `Field.spatial`."""
        return {name: Spatial("mask", (0, 1, 2))}

    def check_fields(self, name: str, fields: Mapping[str, Field]) -> None:
        """Checks that texts have one question about a label; see `Field.check_fields`."""
        texts = [field for field in fields.values() if isinstance(field, Text)]
        count = max((text.source.label_questions for text in texts), default=0)
        if not count:
            raise ConfigError(
                f"data.fields.{name}: no text asks about a label of the mask, so that AskedMask "
                "would be invalid in every sample. Cure: add a Text with the source MaskQuestions, "
                f"or leave {name!r} out."
            )
        if count > 1:
            raise ConfigError(
                f"data.fields.{name}: a text has up to {count} questions, but AskedMask holds the "
                f"mask of one. Cure: set turns=1 in the Conversation, or leave {name!r} out."
            )

    def __call__(self, name: str, sample: Sample) -> dict[str, np.ndarray]:
        """Returns the arrays of one sample; see `Field.__call__`."""
        asked = sample.caption.label if isinstance(sample.caption, Question) else ""
        values = [value for value, label in sample.mask_names.items() if asked and label == asked]
        annotated = bool(values) and bool(sample.record["annotated"][values].all())
        mask = _binary(sample.mask, values) if annotated else np.zeros(sample.size, np.uint8)
        return {name: mask, f"{name}_valid": np.array(annotated)}


def _matching(names: Mapping[int, str], patterns: Sequence[str]) -> list[int]:
    """Returns the label values whose whole name matches one of the expressions."""
    return [v for v, label in names.items() if any(re.fullmatch(p, label) for p in patterns)]


def _binary(mask: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Returns 1 for these label values and 0 for others; `NOT_LABELLED` voxels do not change."""
    table = np.zeros(_VALUES, np.uint8)
    table[list(values)] = 1
    table[NOT_LABELLED] = NOT_LABELLED
    return table[mask]
