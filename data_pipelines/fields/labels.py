"""Labels of a whole study, such as findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.errors import ConfigError
from data_pipelines.fields.base import Field, Sample
from data_pipelines.spatial import Size
from data_pipelines.specs import ArraySpec

if TYPE_CHECKING:
    from data_pipelines.datasets import RecordSource


@dataclasses.dataclass(frozen=True)
class Labels(Field):
    """The labels of the study to which the crop belongs.

    A sample has
      NAME: (N,) float32 in the order of `names`: 1 present, 0 absent, NaN not known.

    Attributes:
      names: names of labels. Each is a label column of the table from which a dataset was
        prepared. If a dataset does not have a label, its value there is NaN.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raises ConfigError if there are no names or a name occurs twice."""
        if not self.names or len(set(self.names)) < len(self.names):
            raise ConfigError(f"names={self.names} must name at least one label, each once.")

    def spec(self, name: str, size: Size) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes; see `Field.spec`."""
        return {name: ArraySpec((len(self.names),), np.dtype(np.float32))}

    def check(self, name: str, sources: Sequence[RecordSource]) -> None:
        """Checks that at least one dataset has each label; see `Field.check`."""
        known = {label for source in sources for label in source.label_names}
        if unknown := [label for label in self.names if label not in known]:
            has = ", ".join(sorted(known)) or "none"
            raise ConfigError(
                f"data.fields.{name}.names: no dataset has the label {unknown[0]!r}. Cure: choose "
                f"from the labels of the datasets: {has}."
            )

    def __call__(self, name: str, sample: Sample) -> dict[str, np.ndarray]:
        """Returns the arrays of one sample; see `Field.__call__`."""
        has = dict(zip(sample.label_names, sample.record["labels"], strict=True))
        return {name: np.array([has.get(label, np.nan) for label in self.names], np.float32)}
