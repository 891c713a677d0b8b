"""Structures by name: what DICOM SEG and RTSTRUCT files share.

Their names of structures are free text, which may hold anything: only names that the user wrote
are ever shown.
"""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers import content
from data_pipelines.readers.dicom_header import read_header, text
from data_pipelines.volume import NOT_LABELLED, Volume


def key(name: str) -> str:
    """What two names must have in common: "Left Kidney" is "left  kidney"."""
    return " ".join(name.casefold().split())


def held(names: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of the wanted names that are among a file's, as the user wrote them."""
    keys = set(map(key, names))
    return tuple(name for name in wanted if key(name) in keys)


def places(path: epath.Path, names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where each of the wanted names stands among a file's.

    Raises:
      DataError: none, or too many, are wanted; one is not there, or there twice.
    """
    if not wanted:
        raise DataError(
            path,
            f"it holds {len(names)} structures, and none was asked for",
            "name those to read, such as structures=('liver', 'spleen')",
        )
    check_count(path, wanted)
    keys = list(map(key, names))
    for name in wanted:
        if (count := keys.count(key(name))) != 1:
            problem = f"{count or 'no'} structures are called {name!r} among its {len(names)}"
            raise DataError(path, problem, "ask for names that it holds once")
    return [keys.index(key(name)) for name in wanted]


def check_count(path: object, wanted: Sequence[str]) -> None:
    """Raises: DataError, when there are more structures than label values."""
    if len(wanted) >= NOT_LABELLED:
        problem = f"{len(wanted)} structures for {NOT_LABELLED - 1} label values"
        raise DataError(path, problem, "ask for fewer of them")


def check_frame(path: epath.Path, frame: str, like: Volume) -> None:
    """Refuses structures in another frame of reference than the image's, if its file tells.

    Raises:
      DataError: the image's files are DICOM and all of them name other frames of reference.
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
            "give the scan that the structures were drawn on, or register the two before",
        )
