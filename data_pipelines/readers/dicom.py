"""DICOM series through pydicom: sorted in space, in HU, with an affine, without patient tags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pydicom
from etils import epath
from pydicom import pixels

from data_pipelines.errors import DataError
from data_pipelines.readers import content
from data_pipelines.readers.dicom_geometry import GEOMETRY_TAGS, stack_slices
from data_pipelines.volume import Units, Volume

AIR_HU = -1024
"""What stands in for voxels outside the scanner's field of view."""
_PREAMBLE = 132
"""Bytes that every DICOM file starts with."""
_VALUE_TAGS = (
    "Modality",
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
)


def find_series(folder: epath.PathLike) -> dict[str, list[epath.Path]]:
    """The image series in a folder and its subfolders, by SeriesInstanceUID.

    Files that are not DICOM or hold no image (reports, contours, DICOMDIR) are passed over.
    Series whose UID an anonymiser removed are together under "".

    Raises:
      DataError: the folder does not exist or holds no DICOM image, or a file beside the images is
        empty or cut short.
    """
    folder = epath.Path(folder)
    found: dict[str, list[epath.Path]] = {}
    cut_short: list[epath.Path] = []
    kinds, without_image = set(), []
    for path in _files(folder):
        length = path.stat().length
        if length <= _PREAMBLE and _named_like_a_slice(path):
            cut_short.append(path)
        if length <= _PREAMBLE or content.file_format(path) != "dicom":
            continue
        header = _header(path, ("SeriesInstanceUID", "Rows", "Columns"))
        kind = str(header.file_meta.get("MediaStorageSOPClassUID"))
        if "Rows" in header and "Columns" in header:
            found.setdefault(str(header.get("SeriesInstanceUID") or ""), []).append(path)
            kinds.add(kind)
        else:
            without_image.append((path, kind))
    # A file that says it is an image like the others and ends before its size is a broken slice.
    cut_short += [path for path, kind in without_image if kind in kinds]
    if found and cut_short:
        raise DataError(
            cut_short[0],
            "is empty or cut short, so a slice may be missing",
            "copy the series again, or delete the file if it is no slice",
        )
    if not found:
        raise DataError(folder, "no DICOM images in it", "give the folder that holds the series")
    return found


def read_dicom(
    path: epath.PathLike, *, series: str | None = None, units: Units | None = None
) -> Volume:
    """Reads the one series of a folder, or the one asked for, or the one a file belongs to.

    Raises:
      DataError: several series and none asked for, no such series, or as `read_dicom_series`.
    """
    path = epath.Path(path)
    found = find_series(path if path.is_dir() else path.parent)
    if not path.is_dir():
        found = {uid: files for uid, files in found.items() if path in files}
    if series is not None and series not in found:
        raise DataError(path, f"no series {series!r} in it", f"ask for one of {_listed(found)}")
    if series is None and len(found) != 1:
        raise DataError(
            path,
            f"{len(found)} series in one folder: {_listed(found)}",
            "choose one with series=UID",
        )
    return read_dicom_series(
        found[series if series is not None else next(iter(found))], units=units
    )


def read_dicom_series(files: Sequence[epath.PathLike], *, units: Units | None = None) -> Volume:
    """Reads the slices of one series, in any order, as (slice, row, column).

    Slices are sorted along their normal. Rescale slope and intercept are applied; CT comes as
    int16 HU where that is exact, with padding voxels as air.

    Args:
      files: one slice each.
      units: None: "HU" for CT, else "raw". Something else than the file says is an error.

    Raises:
      DataError: not one even, rectangular stack of decodable grey-value slices.
    """
    paths = [epath.Path(file) for file in files]
    if not paths:
        raise DataError("", "a series without files", "give at least one DICOM file")
    source = paths[0] if len(paths) == 1 else paths[0].parent
    headers = [(path, _header(path, GEOMETRY_TAGS + _VALUE_TAGS)) for path in paths]
    native: Units = _units(headers[0][1])
    if units not in (None, native):
        raise DataError(
            source, f"the series holds {native!r} values, not {units!r}", "leave out units"
        )
    for path, header in headers:
        _check_values(path, header, native)
    stack = stack_slices(source, headers)
    rescale = {path: _rescale(header) for path, header in headers}
    dtype = np.int16 if all(_whole(*values) for values in rescale.values()) else np.float32
    array = np.empty(stack.shape, dtype)
    for index, path in enumerate(stack.files):
        plane = _plane(path, *rescale[path], air=native == "HU")
        if dtype == np.int16 and not -32768 <= plane.min() <= plane.max() <= 32767:
            dtype, array = np.float32, array.astype(np.float32)
        array[index] = plane
    return Volume(array=array, units=native, affine=stack.affine, source=str(source))


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    if not folder.is_dir():
        raise DataError(folder, "no such folder", "check the path")
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _named_like_a_slice(path: epath.Path) -> bool:
    """Whether a file's name is that of a slice: IM0001, 1.dcm, CT.1.2.840; not notes.txt."""
    end = path.suffix.lstrip(".").lower()
    return not path.name.startswith(".") and (end in ("", "dcm", "ima") or end.isdigit())


def _header(path: epath.Path, tags: Sequence[str]) -> pydicom.Dataset:
    try:
        with path.open("rb") as file:
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
    except (OSError, ValueError, pydicom.errors.InvalidDicomError) as error:
        raise DataError(path, "not a readable DICOM file", "copy or export it again") from error


def _units(header: pydicom.Dataset) -> Units:
    hounsfield = header.get("RescaleType") in (None, "", "HU")
    return "HU" if header.get("Modality") == "CT" and hounsfield else "raw"


def _check_values(path: epath.Path, header: pydicom.Dataset, units: Units) -> None:
    photometric = header.get("PhotometricInterpretation")
    if int(header.get("SamplesPerPixel") or 1) != 1 or not str(photometric).startswith(
        "MONOCHROME"
    ):
        raise DataError(path, f"a colour image ({photometric})", "leave out secondary captures")
    if _units(header) != units:
        raise DataError(path, "the slice's modality differs from the others'", "split the series")
    # In CT the polarity only concerns display: rescaled values are HU either way.
    if photometric == "MONOCHROME1" and units != "HU":
        raise DataError(
            path,
            "MONOCHROME1: high values are dark, unlike in every other scan",
            "convert the series to MONOCHROME2",
        )
    if "ModalityLUTSequence" in header or (units == "HU" and "RescaleIntercept" not in header):
        raise DataError(
            path, "no linear rescale from stored values to HU", "export the original CT series"
        )


def _rescale(header: pydicom.Dataset) -> tuple[float, float]:
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    return 1.0 if slope is None else float(slope), float(intercept or 0)


def _whole(slope: float, intercept: float) -> bool:
    return slope == 1 and intercept == int(intercept)


def _plane(path: epath.Path, slope: float, intercept: float, *, air: bool) -> np.ndarray:
    """One slice (rows, columns), rescaled; int32 where that is exact, else float32."""
    with path.open("rb") as file:
        dataset = pydicom.dcmread(file)
    stored = _decode(path, dataset)
    plane: np.ndarray
    if _whole(slope, intercept):
        plane = stored.astype(np.int32) + int(intercept)
    else:
        plane = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if air and dataset.get("PixelPaddingValue") is not None:
        plane[_padding(dataset, stored)] = AIR_HU
    return plane


def _decode(path: epath.Path, dataset: pydicom.Dataset) -> np.ndarray:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = pixels.get_decoder(syntax)
    except NotImplementedError as error:
        raise DataError(
            path,
            f"its transfer syntax {syntax.name} cannot be decoded",
            "convert the series to an uncompressed one, for example with dcmdjpeg or gdcmconv",
        ) from error
    if not decoder.is_available:
        needed = "; or ".join(decoder.missing_dependencies)
        raise DataError(
            path,
            f"no codec for its transfer syntax {syntax.name} is installed",
            f"install {needed}",
        )
    try:
        return dataset.pixel_array
    except Exception as error:  # codecs raise whatever they like
        raise DataError(
            path,
            f"the pixel data cannot be decoded as {syntax.name}",
            "the file is truncated or mislabelled: copy or export it again",
        ) from error


def _padding(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Voxels in the padding range (PS3.3 C.7.5.1.1.2), as a mask of the slice."""
    first = dataset.PixelPaddingValue
    last = dataset.get("PixelPaddingRangeLimit")
    # Implicit syntaxes mislead about the sign: only the 16 bits are certain.
    limits = np.array([first, first if last is None else last]).astype(np.uint16)
    low, high = np.sort(limits.view(np.int16) if stored.dtype.kind == "i" else limits)
    return (low <= stored) & (stored <= high)


def _listed(found: dict[str, list[epath.Path]]) -> str:
    return ", ".join(f"{uid or '(no UID)'} ({len(files)} files)" for uid, files in found.items())
