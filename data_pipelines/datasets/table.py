"""Reads a table (CSV, UTF-8) about the scans of a folder; each row is a study.

  image       path of the volume or DICOM folder, relative to the folder of scans (required)
  patient_id  rows with the same patient_id are always in the same split
  study_id    unique id of the study
  report      the text of the report
  mask        path of a label map on the grid of the image, a folder with one file per structure,
              a DICOM SEG or an RTSTRUCT
  split       "train", "test" or another name
  series      number or SeriesInstanceUID, needed if a DICOM folder has several series
  points:NAME:SPACE
              points such as candidate centres; see `points`

Every other column is a label: 1 present, 0 absent, empty not known.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from data_pipelines.datasets.points import PREFIX, PointList, read_cell, read_column
from data_pipelines.errors import DataError

_COLUMNS = ("image", "patient_id", "study_id", "report", "mask", "split", "series")


@dataclass(frozen=True)
class StudyRow:
    """A row of the table: one study.

    Attributes:
      root: the folder of scans.
      image: path of the volume.
      cells: {column: text}; empty cells are left out.
      table: path of the table, for errors.
      number: number of the row as in a spreadsheet, for errors.
    """

    root: epath.Path
    image: epath.Path
    cells: Mapping[str, str] = field(default_factory=dict)
    table: epath.PathLike = ""
    number: int = 0

    def path(self, column: str) -> epath.Path:
        """Returns the path in this column.

        Raises:
          DataError: the path is outside of the folder of scans. A missing file is not an error
            here: its reader reports it for this study alone.
        """
        name = self.cells[column]
        if not name.isprintable():
            raise self.error(f"{column} {name!r} holds control characters", "correct the path")
        path = self.root / name
        if not path.is_relative_to(self.root) or ".." in path.parts[len(self.root.parts) :]:
            cure = "give a path relative to the folder of scans, without '..'"
            raise self.error(f"{column} {name!r} is outside of the folder of scans", cure)
        return path

    def label(self, column: str) -> float:
        """Returns the label in this column: 1.0 or 0.0.

        Raises:
          DataError: the cell has other text.
        """
        if (text := self.cells[column]) not in ("0", "1", "0.0", "1.0"):
            cure = "write 1, 0 or nothing (not known), or remove the column"
            # The cell is not shown: the column may be no label column and have patient names.
            raise self.error(f"label {column!r} holds other text", cure)
        return float(text)

    def points(self) -> tuple[PointList, ...]:
        """Returns the points of all columns with points.

        Raises:
          DataError: a cell cannot be read.
        """
        columns = [column for column in self.cells if column.startswith(PREFIX)]
        found = []
        for column in columns:
            try:
                found.append(read_cell(column, self.cells[column]))
            except ValueError as error:
                cure = 'write points as "x y z; x y z", with a dot in decimals'
                raise self.error(f"{column!r} cannot be read: {error}", cure) from None
        return tuple(found)

    def error(self, problem: str, cure: str) -> DataError:
        """Returns the error for a problem in this row."""
        return DataError(self.table, f"row {self.number}: {problem}", cure)


def read_table(root: epath.Path, table: epath.PathLike) -> tuple[list[StudyRow], tuple[str, ...]]:
    """Reads the rows of a table and the names of its label columns.

    Args:
      root: the folder of scans.
      table: the CSV file.

    Raises:
      DataError: the table is not valid. The error names the row and the column.
    """
    reader = csv.DictReader(io.StringIO(_text(table), newline=""), strict=True)
    columns = [name.strip() for name in reader.fieldnames or ()]
    _check_separator(table, columns)
    if "image" not in columns or "" in columns or len(set(columns)) < len(columns):
        # The cells are not shown: in a table without column names they are a patient's data.
        problem = "its first row does not name every column, or uses a name twice"
        cure = "the first row must name every column, each once, one of them 'image'"
        raise DataError(table, problem, cure)
    reader.fieldnames = columns
    rows: dict[tuple[epath.Path, str | None], StudyRow] = {}
    number = 1  # as in a spreadsheet; reports in quotes may have several lines
    try:
        for number, cells in enumerate(reader, 2):
            row = _row(root, table, number, cells)
            key = row.image, row.cells.get("series")
            if key in rows:
                problem = f"image {row.cells['image']!r} is also in row {rows[key].number}"
                raise row.error(problem, "list every image once")
            rows[key] = row
    except csv.Error as error:
        problem = f"row {number + 1}: {error}"
        cure = "put text with commas, quotes or line ends into double quotes"
        raise DataError(table, problem, cure) from error
    return list(rows.values()), _label_columns(table, columns)


def _check_separator(table: epath.PathLike, columns: Sequence[str]) -> None:
    """Checks that the first row is separated by commas, not by semicolons or tabs."""
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and mark in columns[0]:
            cure = "save it as CSV with commas"
            raise DataError(table, f"its columns are separated by {name}, not by commas", cure)


def _label_columns(table: epath.PathLike, columns: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the label columns, after a check of the columns with points."""
    others = [name for name in columns if name not in _COLUMNS]
    names = []
    for column in others:
        if column.startswith(PREFIX):
            try:
                names.append(read_column(column)[0])
            except ValueError as error:
                raise DataError(table, f"column {column!r}: {error}", "rename the column") from None
    if len(set(names)) < len(names):
        problem = f"two columns hold points with the name {max(names, key=names.count)!r}"
        raise DataError(table, problem, "rename one of them")
    return tuple(name for name in others if not name.startswith(PREFIX))


@dataclass(frozen=True)
class Override:
    """The values of a metadata table for a volume, which replace those of the file's header.

    Attributes:
      rescale: (slope, intercept): HU = stored value * slope + intercept.
      spacing: mm along x, y, z, the axes of a NIfTI file.
    """

    rescale: tuple[float, float] | None = None
    spacing: tuple[float, float, float] | None = None


def read_overrides(table: epath.PathLike) -> dict[str, Override]:
    """Reads a table in CT-RATE's layout; returns its values by file name or path below the folder.

    The columns are VolumeName, RescaleSlope, RescaleIntercept, XYSpacing ("[0.7, 0.7]") and
    ZSpacing. The last four may be missing or have empty cells. All other columns are ignored.

    Raises:
      DataError: the table is not valid. The error names the row and the column.
    """
    reader = csv.DictReader(io.StringIO(_text(table), newline=""))
    _check_separator(table, reader.fieldnames or ())
    if "VolumeName" not in (reader.fieldnames or ()):
        cure = "the first row must name the columns, one of them 'VolumeName'"
        raise DataError(table, "it has no column 'VolumeName'", cure)
    return {
        row["VolumeName"].strip(): _override(table, number, row)
        for number, row in enumerate(reader, 2)
    }


def _override(table: epath.PathLike, number: int, cells: Mapping[str, str]) -> Override:
    def numbers(*columns: str) -> list[float] | None:
        texts = [(cells.get(column) or "").strip(" []").split(",")[0] for column in columns]
        if not all(texts):
            return None
        try:
            values = [float(text) for text in texts]
        except ValueError:
            values = [math.nan]
        if not all(map(math.isfinite, values)):
            problem = f"row {number}: {' and '.join(columns)} must be numbers"
            raise DataError(table, problem, "correct the row, or leave the cells empty")
        return values

    rescale, spacing = numbers("RescaleSlope", "RescaleIntercept"), numbers("XYSpacing", "ZSpacing")
    return Override(
        None if rescale is None else (rescale[0], rescale[1]),
        None if spacing is None else (spacing[0], spacing[0], spacing[1]),
    )


def _text(table: epath.PathLike) -> str:
    try:
        return epath.Path(table).read_bytes().decode("utf-8-sig")
    except OSError as error:
        cure = "check the path of the table"
        raise DataError(table, "there is no such readable file", cure) from error
    except UnicodeDecodeError as error:
        cure = 'save the table as "CSV UTF-8"'
        raise DataError(table, f"byte {error.start} is not UTF-8", cure) from error


def _row(
    root: epath.Path, table: epath.PathLike, number: int, cells: Mapping[Any, Any]
) -> StudyRow:
    if None in cells or None in cells.values():
        problem = f"row {number}: it has more or fewer cells than there are columns"
        raise DataError(table, problem, "put text with commas into double quotes")
    known = {name: text.strip() for name, text in cells.items() if text.strip()}
    row = StudyRow(root, root, known, table, number)
    if "image" not in known:
        raise row.error("the column 'image' is empty", "name the volume or DICOM folder")
    return StudyRow(root, row.path("image"), known, table, number)
