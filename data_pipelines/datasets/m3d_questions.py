"""Reads M3D-VQA's tables (arXiv 2404.00578).

They are M3D_VQA_{train,val,test,test5k}.csv and M3D_VQA_yn_train.csv. Their columns are Image Path,
Text, Question Type (1 to 5), Question, Choice A to D, Answer and Answer Choice. In tables with "yn"
in their name the answers are yes or no, and columns for choices are not needed. Cells without a
value have the text "NA", which never becomes part of a question: such choices are left out, and the
others get new letters. A row without a question or an answer is put aside.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Mapping

from etils import epath

from data_pipelines.datasets import m3d_index
from data_pipelines.datasets.qa import TOPICS, QuestionRow
from data_pipelines.datasets.study import Broken
from data_pipelines.errors import DataError, printable
from data_pipelines.text.reports import is_missing

_TABLE = re.compile(r"M3D_VQA_(yn_)?(\w+)\.csv")
_CHOICES = tuple(f"Choice {letter}" for letter in "ABCD")
_COLUMNS = ("Image Path", "Question Type", "Question", "Answer")
_CLOSED = (*_COLUMNS, *_CHOICES, "Answer Choice")
_YES_NO = re.compile(r"(?:yes|no)\b", re.IGNORECASE)
_CURE = "correct the row in the table, or leave it out"


def read_tables(
    folder: epath.PathLike, root: epath.Path, volumes: Iterable[epath.Path]
) -> tuple[dict[epath.Path, list[QuestionRow]], tuple[Broken, ...]]:
    """Reads the tables of a folder.

    Args:
      folder: folder with one or more of the tables.
      root: the folder M3D_Cap or M3D_Cap_npy, to which paths in the tables are relative.
      volumes: the volumes that were found below the root.

    Returns:
      The rows of each volume, and the rows that were put aside. A row that is in both test and
      test5k is there once. A volume that was not found has the path from the table, so that its
      reader reports the error.

    Raises:
      DataError: there is no table, or one cannot be read or lacks a column.
    """
    folder = epath.Path(folder)
    tables = {p: m for p in sorted(folder.glob("*.csv")) if (m := _TABLE.fullmatch(p.name))}
    if not tables:
        cure = "give the folder with M3D_VQA_train.csv, M3D_VQA_test.csv and so on"
        raise DataError(folder, "it holds no table of M3D-VQA", cure)
    found = m3d_index.by_key(root, volumes)
    rows: dict[epath.Path, dict[QuestionRow, QuestionRow]] = {}
    aside: list[Broken] = []
    for path, name in tables.items():
        split = f"vqa_{name[1] or ''}{name[2]}"
        for number, cells in _cells(path, _COLUMNS if name[1] else _CLOSED):
            where = f"row {number}"
            try:
                image = m3d_index.below(root, path, where, cells, "Image Path")
                row = _row(where, cells, yes_no=bool(name[1]))
            except DataError as error:
                aside.append(Broken(path.name, "", printable(error.problem), _CURE))
                continue
            image = found.get(m3d_index.key(image.relative_to(root)), image)
            held = rows.setdefault(image, {})
            before = held.get(row, row).splits
            held[row] = dataclasses.replace(row, splits=tuple(dict.fromkeys((*before, split))))
    return {image: list(held.values()) for image, held in rows.items()}, tuple(aside)


def _cells(path: epath.Path, columns: Iterable[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yields the number (as in a spreadsheet) and the cells of each row."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, "cannot be read, or is not UTF-8", "download it again") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        problem = f"it has no column {missing[0]!r}"
        raise DataError(path, problem, "use the published table")
    number = 1
    try:
        for number, cells in enumerate(reader, 2):
            yield number, {name: text or "" for name, text in cells.items() if name is not None}
    except csv.Error as error:
        raise DataError(path, f"row {number + 1}: {error}", "download it again") from error


def _row(where: str, cells: Mapping[str, str], *, yes_no: bool) -> QuestionRow:
    """Returns the row; raises DataError if the row is not valid."""
    question, answer = (cells[name].strip() for name in ("Question", "Answer"))
    for name, text in (("question", question), ("answer", answer)):
        if is_missing(text):
            raise DataError("", f"{where}: the {name} is missing", _CURE)
    topic = _topic(cells["Question Type"])
    if yes_no:
        if not _YES_NO.match(answer):
            raise DataError("", f"{where}: the answer is neither yes nor no", _CURE)
        return QuestionRow(question, answer, topic=topic, yes_no=True)
    choices = {name[-1]: cells[name].strip() for name in _CHOICES if not is_missing(cells[name])}
    letter = cells["Answer Choice"].strip().rstrip(".").upper()
    if is_missing(letter):
        letter = next((a for a, text in choices.items() if _same(text, answer)), "")
    elif not _same(choices.get(letter, ""), answer):
        raise DataError("", f"{where}: choice {letter!r} and the answer differ", _CURE)
    distinct = len({" ".join(text.casefold().split()) for text in choices.values()})
    if not letter or distinct < max(len(choices), 2):
        return QuestionRow(question, answer, topic=topic)  # no real choice: an open question
    return QuestionRow(question, choices[letter], tuple(choices.values()), topic)


def _topic(cell: str) -> str:
    number = cell.strip().removesuffix(".0")
    return TOPICS.get(int(number), "") if number.isdecimal() else ""


def _same(one: str, other: str) -> bool:
    return _plain(one) == _plain(other)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .")
