"""Finds, selects and reads DICOM series in folders."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

import pydicom
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.files import below
from data_pipelines.readers import content
from data_pipelines.readers.dicom_header import quiet, read_header, text, whole
from data_pipelines.readers.dicom_volume import read_dicom_series
from data_pipelines.volume import Units, Volume

LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
"""UID of Label Map Segmentation Storage, which pydicom's list does not have yet."""
_NO_SCANS = {
    LABEL_MAP_SEGMENTATION,
    str(pydicom.uid.SegmentationStorage),
    str(pydicom.uid.RTDoseStorage),
    str(pydicom.uid.ParametricMapStorage),
}
"""Kinds of files that are not scans but have rows and columns too."""
_PREAMBLE = 132
"""Size in bytes of the preamble and the magic number at the start of every DICOM file."""

_Series = Mapping[str, list[tuple[epath.Path, pydicom.Dataset]]]


def find_series(folder: epath.PathLike) -> dict[str, list[epath.Path]]:
    """Returns {SeriesInstanceUID: files} of the image series in a folder and its subfolders.

    Files that are not DICOM, and DICOM files without a scan (reports, contours, segmentations,
    doses, parametric maps, DICOMDIR), are ignored. All series without a UID, as after
    anonymisation, are together under "".

    Raises:
      DataError: the folder does not exist or has no DICOM image; or a file beside the images is
        empty, truncated or without the preamble.
    """
    found = _find_some(epath.Path(folder))
    return {uid: [path for path, _ in files] for uid, files in found.items()}


def read_dicom(
    path: epath.PathLike, *, series: str | None = None, units: Units | None = None
) -> Volume:
    """Reads a series: the only one of a folder, the selected one, or the series of a file.

    Args:
      path: a folder, or one file of a series.
      series: selects one of several series, by its SeriesInstanceUID or by its number in the order
        of the SeriesInstanceUIDs, from 1. The error about several series lists these numbers.
      units: see `read_dicom_series`.

    Raises:
      DataError: there are several series and `series` is None; there is no such series; or as in
        `read_dicom_series`.
    """
    path = epath.Path(path)
    if path.is_dir():
        found = _find_some(path)
    else:
        beside = _find(path.parent)
        found = {u: files for u, files in beside.items() if path in (file for file, _ in files)}
        if not found:
            cure = "give the complete scan itself, not its report, contours or segmentation"
            raise DataError(path, "a DICOM file without a scan, or cut short", cure)
    uid = _choice(path, found, series)
    return read_dicom_series([file for file, _ in found[uid]], units=units)


@quiet()
def _find(folder: epath.Path) -> _Series:
    """Returns {SeriesInstanceUID: (file, header)}, as `find_series`; headers have a few tags."""
    found: dict[str, list[tuple[epath.Path, pydicom.Dataset]]] = {}
    cut_short: list[epath.Path] = []
    kinds, without_image = set(), []
    if not folder.is_dir():
        raise DataError(folder, "no such folder", "check the path")
    for path in below(folder):
        if _length(path) <= _PREAMBLE:
            cut_short += [path] if _named_like_a_slice(path) else []
            continue
        if content.file_format(path) != "dicom":
            _check_no_slice(path)
            continue
        header = read_header(path, ("SeriesInstanceUID", "Rows", "Columns", "NumberOfFrames"))
        kind = text(header.file_meta, "MediaStorageSOPClassUID")
        if "Rows" not in header or "Columns" not in header:
            without_image.append((path, kind))
        elif kind not in _NO_SCANS:
            found.setdefault(text(header, "SeriesInstanceUID"), []).append((path, header))
            kinds.add(kind)
    # A file of the same kind as the images but without Rows and Columns is a truncated slice.
    cut_short += [path for path, kind in without_image if kind in kinds]
    if found and cut_short:
        raise DataError(
            cut_short[0],
            "is empty or cut short, so a slice may be missing",
            "copy the series again, or delete the file if it is not a slice",
        )
    return found


def _find_some(folder: epath.Path) -> _Series:
    if found := _find(folder):
        return found
    raise DataError(folder, "no DICOM images in it", "give the folder that holds the series")


def _length(path: epath.Path) -> int:
    try:
        return path.stat().length
    except OSError:  # for example a link to a missing file
        return 0


def _named_like_a_slice(path: epath.Path) -> bool:
    """Returns whether a file is named like a slice: IM0001, 1.dcm, CT.1.2.840; not notes.txt."""
    end = path.suffix.lstrip(".").lower()
    return not path.name.startswith(".") and (end in ("", "dcm", "ima") or end.isdigit())


def _check_no_slice(path: epath.Path) -> None:
    """Raises DataError for a slice without the preamble, which would be missing from its series.

    The first element of such a file has group 2 or 8, and a VR of two letters or a short length.
    Forced reading is not used, because pydicom then makes a header of any file.
    """
    group, element, after = (head := content.head(path, 8))[:2], head[3:4], head[4:]
    starts = group in (b"\x02\0", b"\x08\0") and element == b"\0"
    if _named_like_a_slice(path) and starts and (after[:2].isupper() or after[2:] == b"\0\0"):
        cure = "rewrite it, for example with dcmconv +F, or delete it if it is not a slice"
        raise DataError(path, "it looks like a DICOM file without its preamble", cure)


def _choice(path: epath.Path, found: _Series, series: str | None) -> str:
    """Returns the UID of the selected series, or of the only one."""
    ordered = sorted(found)
    if series is None and len(ordered) == 1:
        return ordered[0]
    cure = "choose one by its number, --series 1 (series='1' in Python), or SeriesInstanceUID"
    if series is None:
        problem = f"{len(ordered)} series in one folder: {_listed(found)}"
        raise DataError(path, problem, cure)
    if series in found:
        return series
    if not (series.isascii() and series.isdigit()):
        problem = f"no series with the given SeriesInstanceUID, but {_listed(found)}"
        raise DataError(path, problem, cure)
    if not 1 <= int(series) <= len(ordered):
        raise DataError(path, f"no series {series!r} in it, but {_listed(found)}", cure)
    return ordered[int(series) - 1]


def _listed(found: _Series) -> str:
    return "; ".join(
        f"{number}: {_described(found[uid])}" for number, uid in enumerate(sorted(found), 1)
    )


def _described(files: Sequence[tuple[epath.Path, pydicom.Dataset]]) -> str:
    """Returns the number and size of a series' slices: "120 slices of 512x512, 1 of 888x733"."""
    sizes: collections.Counter[str] = collections.Counter()
    for path, header in files:
        size = f"{whole(path, header, 'Rows')}x{whole(path, header, 'Columns')}"
        sizes[size] += whole(path, header, "NumberOfFrames", 1) or 1
    (most, count), *rest = sizes.most_common()
    return ", ".join([f"{count} slices of {most}", *(f"{n} of {size}" for size, n in rest)])
