"""Finds structures by name; shared by the readers of DICOM SEG and RTSTRUCT files.

The names in files are free text and may contain private data. So messages show only names that the
user gave.
"""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers import content
from data_pipelines.readers.dicom_header import read_header, text
from data_pipelines.volume import NOT_LABELLED, Volume


def key(name: str) -> str:
    """Returns the normalised name for comparisons: "Left Kidney" equals "left  kidney"."""
    return " ".join(name.casefold().split())


def held(names: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Returns the wanted names that are among a file's names, in the user's spelling."""
    keys = set(map(key, names))
    return tuple(name for name in wanted if key(name) in keys)


def places(path: epath.Path, names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Returns the index of each wanted name among a file's names.

    Raises:
      DataError: no names or too many are wanted, or a wanted name is missing or not unique.
    """
    if not wanted:
        raise DataError(
            path,
            f"it holds {len(names)} structures, and no name was given",
            "name the structures to read, such as structures=('liver', 'spleen')",
        )
    check_count(path, wanted)
    keys = list(map(key, names))
    for name in wanted:
        if (count := keys.count(key(name))) != 1:
            problem = f"{count or 'no'} structures are called {name!r} among its {len(names)}"
            raise DataError(path, problem, "give names that are in the file exactly once")
    return [keys.index(key(name)) for name in wanted]


def check_count(path: object, wanted: Sequence[str]) -> None:
    """Raises DataError if there are more structures than label values."""
    if len(wanted) >= NOT_LABELLED:
        problem = f"{len(wanted)} structures for {NOT_LABELLED - 1} label values"
        raise DataError(path, problem, "give fewer names")


def check_frame(path: epath.Path, frame: str, like: Volume) -> None:
    """Checks that structures have the image's frame of reference, if the image's files state it.

    Raises:
      DataError: the image's files are DICOM and all of them have other frames of reference.
    """
    image = epath.Path(like.source)
    if not like.source or not image.exists():
        return
    seen = False
    for file in sorted(image.iterdir()) if image.is_dir() else [image]:
        if file.is_dir() or not file.stat().length or content.file_format(file) != "dicom":
            continue
        header = read_header(file, ("FrameOfReferenceUID", "Rows"))
        theirs = text(header, "FrameOfReferenceUID") if "Rows" in header else ""
        if theirs and theirs == frame:
            return
        seen = seen or bool(theirs)
    if seen and frame:
        raise DataError(
            path,
            "its frame of reference is not the image's",
            "give the scan that the structures were drawn on, or register the two first",
        )
