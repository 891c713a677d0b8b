"""Points of a study, such as centres of nodule candidates, in tables and in records.

A column "points:NAME:SPACE" of a table has points as "x y z; x y z; ...". SPACE is the coordinate
system of the numbers:
  ras    millimetres to the right, anterior and superior, as in NIfTI;
  lps    millimetres to the left, posterior and superior, as in DICOM and ITK;
  voxel  voxels of the file along its own axes, from 0.
A record has the points as voxels (d, h, w) of its own grid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.volume import Volume, transform

PREFIX = "points:"
_SPACES = ("ras", "lps", "voxel")


@dataclass(frozen=True)
class PointList:
    """Points with one name, from a cell of a table.

    Attributes:
      name: name of the points.
      space: coordinate system of the numbers: "ras", "lps" or "voxel".
      places: the three numbers of every point.
    """

    name: str
    space: str
    places: tuple[tuple[float, ...], ...]

    def on(self, volume: Volume) -> np.ndarray:
        """Returns the points as voxels (N, 3) of a preprocessed volume.

        Raises:
          DataError: the points are in millimetres, and the volume has no affine.
        """
        places = np.array(self.places, np.float64).reshape(-1, 3)
        if self.space == "voxel":
            return transform(np.linalg.inv(volume.to_source), places)
        if volume.affine is None:
            raise DataError(
                volume.source,
                f"its points {self.name!r} are in millimetres, but the file does not tell where "
                "its voxels lie in the patient",
                f"give them as voxels, in a column {PREFIX}{self.name}:voxel",
            )
        ras = places * (-1, -1, 1) if self.space == "lps" else places
        return transform(np.linalg.inv(volume.affine), ras)


def read_column(column: str) -> tuple[str, str]:
    """Reads the name and the space of points from the name of a column.

    Raises:
      ValueError: the column does not give both.
    """
    _, *rest = column.split(":")
    if len(rest) != 2 or not rest[0] or rest[1] not in _SPACES:
        raise ValueError(f"the column must be {PREFIX}NAME:SPACE, SPACE one of {_SPACES}")
    return rest[0], rest[1]


def read_cell(column: str, text: str) -> PointList:
    """Reads the points in a cell of a table.

    Raises:
      ValueError: the column or the cell does not have the format above.
    """
    name, space = read_column(column)
    places = [tuple(map(float, one.split())) for one in text.split(";") if one.strip()]
    if any(len(place) != 3 or not all(map(math.isfinite, place)) for place in places):
        raise ValueError("every point must have three finite numbers")
    return PointList(name, space, tuple(places))


def to_text(points: Sequence[PointList], volume: Volume) -> str:
    """Returns points as JSON, for the field `points` of a record; "" for no points."""
    found = {one.name: one.on(volume).round(3).tolist() for one in points}
    return json.dumps(found) if found else ""


def names(record: Mapping[str, Any]) -> list[str]:
    """Returns the names of the points of a record."""
    return list(json.loads(record["points"] or "{}"))


def of_record(record: Mapping[str, Any], name: str) -> np.ndarray:
    """Returns the points of a record as voxels (N, 3), float64; N = 0 if it has none."""
    return np.array(json.loads(record["points"] or "{}").get(name, []), np.float64).reshape(-1, 3)
