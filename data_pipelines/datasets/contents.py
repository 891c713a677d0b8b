"""Lists the structures and points of a split from the dataset's index; no record is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from data_pipelines.datasets.reading import STUDIES
from data_pipelines.errors import ConfigError

if TYPE_CHECKING:
    from data_pipelines.datasets.reading import RecordSource


def structures(sources: Sequence[RecordSource]) -> set[str]:
    """Returns the names of the labels that are in a mask of these splits."""
    found = set()
    for source in sources:
        values = {value for row in _rows(source) for value in row["masks"]}
        found |= {name for value, name in source.mask_names.items() if value in values}
    return found


def check_points(where: str, name: str, sources: Sequence[RecordSource]) -> None:
    """Checks that a study of these splits has points with this name.

    Datasets of earlier versions do not list their points, so they are not checked.

    Args:
      where: place of the name in the config, for the error.
      name: name of the points.
      sources: the splits.

    Raises:
      ConfigError: no study has them.
    """
    lists = [row.get("points") for source in sources for row in _rows(source)]
    found = {name for names in lists if names is not None for name in names}
    if name not in found and None not in lists:
        raise ConfigError(
            f"{where}: no study of {shown(sources)} has points {name!r}. Cure: choose from the "
            f"points that are there: {', '.join(sorted(found)) or 'none'}."
        )


def shown(sources: Sequence[RecordSource]) -> str:
    """Returns the splits as text, for errors."""
    return ", ".join(f"{source.path} ({source.split})" for source in sources)


def _rows(source: RecordSource) -> Iterator[dict[str, Any]]:
    """Yields the lines of the index for the studies of a split."""
    with (source.path / STUDIES).open() as lines:
        for row in map(json.loads, lines):
            if source.split in (row["split"], *row["also_in"]):
                yield row
