"""DICOM series in folders: found, told apart, chosen and read."""

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
"""Label Map Segmentation Storage, younger than pydicom's list."""
_NO_SCANS = {
    LABEL_MAP_SEGMENTATION,
    str(pydicom.uid.SegmentationStorage),
    str(pydicom.uid.RTDoseStorage),
}
"""Kinds of files that lie beside a scan and have rows and columns too."""
_PREAMBLE = 132
"""Bytes that every DICOM file starts with."""

_Series = Mapping[str, list[tuple[epath.Path, pydicom.Dataset]]]


def find_series(folder: epath.PathLike) -> dict[str, list[epath.Path]]:
    """The image series in a folder and its subfolders, by SeriesInstanceUID.

    Files that are not DICOM or hold no scan (reports, contours, segmentations, doses, DICOMDIR)
    are passed over. Series whose UID an anonymiser removed are together under "".

    Raises:
      DataError: the folder does not exist or holds no DICOM image, or a file beside the images is
        empty, cut short or without the preamble.
    """
    found = _find_some(epath.Path(folder))
    return {uid: [path for path, _ in files] for uid, files in found.items()}


def read_dicom(
    path: epath.PathLike, *, series: str | None = None, units: Units | None = None
) -> Volume:
    """Reads the one series of a folder, or the one asked for, or the one a file belongs to.

    Args:
      path: a folder, or one file of a series.
      series: where there are several, the number that the error for them shows (they are sorted
        by SeriesInstanceUID), or the SeriesInstanceUID itself.
      units: as in `read_dicom_series`.

    Raises:
      DataError: several series and none asked for, no such series, or as `read_dicom_series`.
    """
    path = epath.Path(path)
    if path.is_dir():
        found = _find_some(path)
    else:
        beside = _find(path.parent)
        found = {u: files for u, files in beside.items() if path in (file for file, _ in files)}
        if not found:
            cure = "give the scan itself, whole; reports, contours and segmentations are none"
            raise DataError(path, "a DICOM file without a scan, or cut short", cure)
    uid = _choice(path, found, series)
    return read_dicom_series([file for file, _ in found[uid]], units=units)


@quiet()
def _find(folder: epath.Path) -> _Series:
    """As `find_series`, each file with the few tags that tell about it."""
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
    # A file that says it is an image like the others and ends before its size is a broken slice.
    cut_short += [path for path, kind in without_image if kind in kinds]
    if found and cut_short:
        raise DataError(
            cut_short[0],
            "is empty or cut short, so a slice may be missing",
            "copy the series again, or delete the file if it is no slice",
        )
    return found


def _find_some(folder: epath.Path) -> _Series:
    if found := _find(folder):
        return found
    raise DataError(folder, "no DICOM images in it", "give the folder that holds the series")


def _length(path: epath.Path) -> int:
    try:
        return path.stat().length
    except OSError:  # such as a link to a file that is gone
        return 0


def _named_like_a_slice(path: epath.Path) -> bool:
    """Whether a file's name is that of a slice: IM0001, 1.dcm, CT.1.2.840; not notes.txt."""
    end = path.suffix.lstrip(".").lower()
    return not path.name.startswith(".") and (end in ("", "dcm", "ima") or end.isdigit())


def _check_no_slice(path: epath.Path) -> None:
    """Refuses a slice that lacks the preamble, which would be missing from its series.

    Its first element is of group 2 or 8, with a VR of two letters or a short length. Reading such
    files by force is no option: pydicom then makes a header of anything.
    """
    group, element, after = (head := content.head(path, 8))[:2], head[3:4], head[4:]
    starts = group in (b"\x02\0", b"\x08\0") and element == b"\0"
    if _named_like_a_slice(path) and starts and (after[:2].isupper() or after[2:] == b"\0\0"):
        cure = "rewrite it, for example with dcmconv +F, or delete it if it is no slice"
        raise DataError(path, "a DICOM file without its preamble, or something like it", cure)


def _choice(path: epath.Path, found: _Series, series: str | None) -> str:
    """The UID of the series asked for, or of the only one."""
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
        problem = f"no series with the SeriesInstanceUID asked for, but {_listed(found)}"
        raise DataError(path, problem, cure)
    if not 1 <= int(series) <= len(ordered):
        raise DataError(path, f"no series {series!r} in it, but {_listed(found)}", cure)
    return ordered[int(series) - 1]


def _listed(found: _Series) -> str:
    return "; ".join(
        f"{number}: {_described(found[uid])}" for number, uid in enumerate(sorted(found), 1)
    )


def _described(files: Sequence[tuple[epath.Path, pydicom.Dataset]]) -> str:
    """What a series holds: "120 slices of 512x512, 1 of 888x733"."""
    sizes: collections.Counter[str] = collections.Counter()
    for path, header in files:
        size = f"{whole(path, header, 'Rows')}x{whole(path, header, 'Columns')}"
        sizes[size] += whole(path, header, "NumberOfFrames", 1) or 1
    (most, count), *rest = sizes.most_common()
    return ", ".join([f"{count} slices of {most}", *(f"{n} of {size}" for size, n in rest)])
