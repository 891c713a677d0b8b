"""Decodes and rescales the pixels of DICOM files, frame by frame, after checks of their size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import numpy as np
import pydicom
from etils import epath
from pydicom import pixels
from pydicom.dataelem import RawDataElement

from data_pipelines.errors import DataError
from data_pipelines.readers import content, values
from data_pipelines.readers.dicom_frames import DicomSlice
from data_pipelines.readers.dicom_header import EXPORT, numbers, text, transfer_syntax, whole

AIR_HU = -1024
"""Value in HU for voxels outside the scanner's field of view."""
PIXEL_TAGS = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
)
"""Tags that this module needs in a header."""
_UNDECLARED_PADDING_HU = (-2000, -2048, -3024)
"""Values in HU that scanners write outside the field of view, also without a PixelPaddingValue."""
_PIXELS_PER_BYTE = 4096
"""Upper limit for compressed pixels per byte. JPEG 2000 and JPEG-LS reach less for an empty slice
of 512 x 512, and deflate reaches 1032."""


def check_pixels(path: epath.Path, header: pydicom.Dataset, *, hounsfield: bool) -> None:
    """Checks that the pixels are grey values in a layout that the header determines.

    Raises:
      DataError: the pixels are coloured, inverted or in an unusual bit layout, or more than the
        file can hold.
    """
    photometric = text(header, "PhotometricInterpretation")
    colour = not photometric.startswith("MONOCHROME")
    if colour or whole(path, header, "SamplesPerPixel", 1) != 1:
        raise DataError(path, "a colour image, not grey values", "leave out secondary captures")
    # In CT the polarity only affects display: rescaled values are HU in both cases.
    if photometric == "MONOCHROME1" and not hounsfield:
        raise DataError(
            path,
            "MONOCHROME1: high values are dark, unlike in other scans",
            "convert the series to MONOCHROME2",
        )
    allocated, stored = (whole(path, header, tag) for tag in ("BitsAllocated", "BitsStored"))
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated:
        problem = f"pixels of {stored} bits in {allocated}, not in 8, 16 or 32"
        raise DataError(path, problem, EXPORT)
    if whole(path, header, "HighBit", stored - 1) != stored - 1:
        raise DataError(path, "pixels that are not in the lowest bits (HighBit)", EXPORT)
    if whole(path, header, "PixelRepresentation") > 1:
        raise DataError(path, "a PixelRepresentation other than 0 and 1", EXPORT)
    check_size(path, header)


def check_size(path: epath.Path, header: pydicom.Dataset) -> None:
    """Checks that a file is long enough for the number of pixels in its header.

    It runs before memory for the pixels is allocated.

    Raises:
      DataError: the file is too short.
    """
    rows, columns, bits = (whole(path, header, tag) for tag in ("Rows", "Columns", "BitsAllocated"))
    claimed = rows * columns * (whole(path, header, "NumberOfFrames", 1) or 1)
    syntax, length = transfer_syntax(path, header), path.stat().length
    packed = syntax.is_compressed or syntax.is_deflated
    if claimed > length * (_PIXELS_PER_BYTE if packed else 8 / bits if bits else 0):
        raise DataError(
            path,
            f"its header claims {claimed} pixels, more than {length} bytes can hold",
            "the file is truncated or damaged: copy or export it again",
        )


def stored_frames(path: epath.Path, header: pydicom.Dataset) -> Iterator[np.ndarray]:
    """Yields the frames of a file one by one, as stored numbers (rows, columns).

    Raises:
      DataError: no codec is installed, or the pixel data does not agree with the header.
    """
    syntax = transfer_syntax(path, header)
    check_codec(path, syntax)
    count, found = whole(path, header, "NumberOfFrames", 1) or 1, 0
    try:
        with content.open_file(path) as file:
            if not syntax.is_encapsulated:
                _check_length(path, header, file)
            # pydicom decodes the file frame by frame, except if it must inflate it.
            source = pydicom.dcmread(file) if syntax.is_deflated else file
            for frame in pixels.iter_pixels(source, raw=True):
                found += 1
                if found <= count:
                    yield frame
    except DataError:
        raise
    except Exception:  # codecs raise many types of errors
        raise _damaged(path, f"the pixel data cannot be decoded as {syntax.name}") from None
    if found != count:
        raise _damaged(path, "the number of frames in the pixel data is not that of the header")


def rescaled(stored: np.ndarray, slice_: DicomSlice, header: pydicom.Dataset) -> np.ndarray:
    """Returns the values of one slice, as `values.rescaled`; in CT, padding becomes air."""
    plane = values.rescaled(stored, slice_.slope, slice_.intercept)
    if slice_.units != "HU":
        return plane
    air = np.isin(plane, _UNDECLARED_PADDING_HU) | _padding(slice_.path, header, stored)
    return np.where(air, np.int16(AIR_HU), plane)


def is_whole(slice_: DicomSlice) -> bool:
    """Returns whether rescaled values are integers."""
    return slice_.slope == 1 and slice_.intercept.is_integer()


def _padding(path: epath.Path, header: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Returns the mask of a slice's voxels in the padding range (PS3.3 C.7.5.1.1.2)."""
    first = numbers(path, header, "PixelPaddingValue")
    last = numbers(path, header, "PixelPaddingRangeLimit") or first
    if first is None or last is None:
        return np.zeros(stored.shape, bool)
    # With implicit transfer syntaxes the sign may be wrong; only the stored bits are reliable.
    bits = np.array([*first, *last]).astype(np.int64)
    sign = 1 << (whole(path, header, "BitsStored") - 1)
    bits &= 2 * sign - 1
    if stored.dtype.kind == "i":
        bits -= 2 * (bits & sign)
    low, high = np.sort(bits)
    return (low <= stored) & (stored <= high)


def check_codec(path: epath.Path, syntax: pydicom.uid.UID) -> None:
    """Checks that an installed codec can decode the pixels.

    Raises:
      DataError: no installed codec can.
    """
    try:
        decoder = pixels.get_decoder(syntax)
    except NotImplementedError:
        raise DataError(
            path,
            f"its transfer syntax {syntax.name} cannot be decoded",
            "convert the series to an uncompressed one, for example with dcmdjpeg or gdcmconv",
        ) from None
    if not decoder.is_available:
        needed = "; or ".join(decoder.missing_dependencies)
        raise DataError(
            path,
            f"no codec for its transfer syntax {syntax.name} is installed",
            f"install {needed}",
        )


def _check_length(path: epath.Path, header: pydicom.Dataset, file: IO[bytes]) -> None:
    """Raises DataError if uncompressed pixels are too few, or exceed the header by a row or more.

    With a wrong BitsAllocated or Columns, such pixels would be decoded to a pattern of stripes.
    """
    dataset = pydicom.dcmread(file, defer_size=1, specific_tags=["PixelData"])
    file.seek(0)
    element = dataset.get_item("PixelData", keep_deferred=True)
    if not isinstance(element, RawDataElement):
        raise DataError(path, "no PixelData", EXPORT)
    row = whole(path, header, "Columns") * whole(path, header, "BitsAllocated") // 8
    wanted = row * whole(path, header, "Rows") * (whole(path, header, "NumberOfFrames", 1) or 1)
    excess = element.length - wanted
    if not 0 <= excess < max(row, 2):
        name = transfer_syntax(path, header).name
        raise _damaged(
            path,
            f"the pixel data cannot be decoded as {name}: it has {element.length} bytes, "
            f"the header says {wanted}",
        )


def _damaged(path: epath.Path, problem: str) -> DataError:
    return DataError(path, problem, "the file is truncated or mislabelled: copy or export it again")
