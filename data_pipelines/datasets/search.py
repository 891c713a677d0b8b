"""Finds the volumes in a folder."""

import re
from collections import Counter
from collections.abc import Iterator

from etils import epath

from data_pipelines.errors import DataError, printable
from data_pipelines.files import is_local, leads_out, real
from data_pipelines.readers import content

_VOLUME = re.compile(r"\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|npy|npz)$", re.IGNORECASE)
_ENDING = re.compile(r"\.[a-z][a-z0-9]{0,4}", re.IGNORECASE)
"""File endings such as .csv, .xlsx and .jsonl; too short for a date or for most names."""
_SLICE = re.compile(r"\.(png|jpg|jpeg)$", re.IGNORECASE)


def own_name(root: epath.Path, path: epath.Path) -> str:
    """Returns the name of a study: the path of its volume below the root, without the ending."""
    relative = printable(path.relative_to(root).as_posix())
    return printable(root.name) if relative == "." else _VOLUME.sub("", relative)


class Search:
    """A search for volumes: by file names, and by content for DICOM files.

    Attributes:
      passed_over: {ending: number of files} of files that are not volumes.
    """

    def __init__(self, root: epath.Path, masks: str | None = None) -> None:
        """Prepares a search below `root` without files and folders with the name `masks`."""
        self.passed_over: Counter[str] = Counter()
        self._root = root
        self._masks = masks
        self._seen: set[str] = set()

    def volumes(self) -> Iterator[epath.Path]:
        """Yields volume files, folders with DICOM files, and folders of image slices.

        The order is alphabetical. A DICOM folder is yielded once for all series in it and below
        it; volume files in it and below it are also yielded. A link that leads out of the root is
        yielded, so that its reader reports the error. A folder that is reached again through a link
        is searched once.
        """
        self._seen.clear()
        self.passed_over.clear()
        yield from self._below(self._root)

    def notes(self) -> tuple[str, ...]:
        """Returns notes for the dataset card about files that are not volumes."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.passed_over.most_common(20))
        return (f"Ignored files that are not volumes: {kinds}.",) if kinds else ()

    def _below(self, folder: epath.Path, *, in_series: bool = False) -> Iterator[epath.Path]:
        if leads_out(folder, self._root):
            yield folder
            return
        where = str(real(folder) if is_local(folder) else folder)
        if where in self._seen:
            return
        self._seen.add(where)
        try:
            children = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except OSError:
            yield folder  # its reader reports the error
            return
        children = [path for path in children if path.name != self._masks]
        folders = {path for path in children if path.is_dir()}
        files = [path for path in children if path not in folders]
        volumes = [path for path in files if _VOLUME.search(path.name)]
        others = [path for path in files if path not in volumes]
        if in_series or any(map(_is_dicom, others)):
            if not in_series:
                yield folder
            in_series, files = True, volumes
        elif not volumes and sum(bool(_SLICE.search(path.name)) for path in files) > 1:
            yield folder
            files = []
        for path in sorted([*folders, *files]):
            if path in folders:
                yield from self._below(path, in_series=in_series)
            elif path in volumes:
                yield path
            else:
                # The name could be a patient's name: only a usual ending is shown.
                usual = _ENDING.fullmatch(path.suffix)
                other = "other endings" if path.suffix else "without ending"
                self.passed_over[path.suffix if usual else other] += 1


def _is_dicom(path: epath.Path) -> bool:
    # Unlike the test in `readers` it never raises: a damaged file must not stop the search.
    # A DICOMDIR is the table of contents of a disc, not a slice.
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        with content.open_file(path) as file:
            return file.read(132).endswith(b"DICM")
    except (OSError, DataError):
        return False
