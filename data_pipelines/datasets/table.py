"""A table (CSV, UTF-8) that tells about the scans of a folder; each row is a study.

  image       path of the volume or DICOM folder, relative to the folder of scans (required)
  patient_id  rows with the same one never come into different splits
  study_id    a name of its own
  report      the text of the report
  mask        path of a label map on the grid of the image, a folder with one file per structure,
              a DICOM SEG or an RTSTRUCT
  split       "train", "test" or another name
  series      number or SeriesInstanceUID, where a DICOM folder holds several
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
class Row:
    """A study as the table tells it.

    Attributes:
      root: The folder of scans.
      image: The volume.
      cells: {column: text}; empty cells are left out.
      table: For errors.
      number: Row of the table as a spreadsheet counts, for errors.
    """

    root: epath.Path
    image: epath.Path
    cells: Mapping[str, str] = field(default_factory=dict)
    table: epath.PathLike = ""
    number: int = 0

    def path(self, column: str) -> epath.Path:
        """Returns the path in this column.

        Raises:
          DataError: It is not in the folder: a table may not read the whole disk. One that is
            not there is left to the reader, which costs this study and no other.
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
        """Returns 1.0 or 0.0.

        Raises:
          DataError: The cell holds something else.
        """
        if (text := self.cells[column]) not in ("0", "1", "0.0", "1.0"):
            cure = "write 1, 0 or nothing when it is not known, or remove the column"
            # The cell is not shown: it may be a name in a column that was never meant as a label.
            raise self.error(f"label {column!r} holds other text", cure)
        return float(text)

    def points(self) -> tuple[PointList, ...]:
        """Returns the points in the columns that hold some.

        Raises:
          DataError: A cell cannot be read.
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


def read_table(root: epath.Path, table: epath.PathLike) -> tuple[list[Row], tuple[str, ...]]:
    """Returns the rows of a table and the names of its label columns.

    Args:
      root: The folder of scans.
      table: The CSV file.

    Raises:
      DataError: Names the row and the column at fault.
    """
    reader = csv.DictReader(io.StringIO(_text(table), newline=""), strict=True)
    columns = [name.strip() for name in reader.fieldnames or ()]
    if "image" not in columns or "" in columns or len(set(columns)) < len(columns):
        # The cells are not shown: in a table without names, they are the first patient's.
        problem = "its first row does not name the columns, or not each by a name of its own"
        cure = "the first row must name every column, each once, one of them 'image'"
        raise DataError(table, problem, cure)
    reader.fieldnames = columns
    rows: dict[tuple[epath.Path, str | None], Row] = {}
    number = 1  # as a spreadsheet counts; reports in quotes may run over several lines
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


def _label_columns(table: epath.PathLike, columns: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns that hold labels, after a check of those that hold points."""
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
    """What a metadata table says of a volume, in place of the file's own header.

    Attributes:
      rescale: (slope, intercept): HU = stored value * slope + intercept.
      spacing: mm along x, y, z, the axes of a NIfTI file.
    """

    rescale: tuple[float, float] | None = None
    spacing: tuple[float, float, float] | None = None


def read_overrides(table: epath.PathLike) -> dict[str, Override]:
    """Returns what a table in CT-RATE's layout says, by file name or path below the folder.

    Its columns VolumeName, RescaleSlope, RescaleIntercept, XYSpacing ("[0.7, 0.7]") and ZSpacing
    are read, the last four where they are there and filled; all others are passed over.

    Raises:
      DataError: Names the row and the column at fault.
    """
    reader = csv.DictReader(io.StringIO(_text(table), newline=""))
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


def _row(root: epath.Path, table: epath.PathLike, number: int, cells: Mapping[Any, Any]) -> Row:
    if None in cells or None in cells.values():
        problem = f"row {number}: it has more or fewer cells than there are columns"
        raise DataError(table, problem, "put text with commas into double quotes")
    known = {name: text.strip() for name, text in cells.items() if text.strip()}
    row = Row(root, root, known, table, number)
    if "image" not in known:
        raise row.error("the column 'image' is empty", "name the volume or DICOM folder")
    return Row(root, row.path("image"), known, table, number)
