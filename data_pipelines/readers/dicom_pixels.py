"""The voxels of DICOM files: checked against the file's size, decoded frame by frame, rescaled."""

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
from data_pipelines.readers.dicom_frames import Slice
from data_pipelines.readers.dicom_header import EXPORT, numbers, text, transfer_syntax, whole

AIR_HU = -1024
"""What stands in for voxels outside the scanner's field of view."""
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
"""What scanners write outside of the field of view, also without a PixelPaddingValue."""
_PIXELS_PER_BYTE = 4096
"""More than JPEG 2000 and JPEG-LS make of an empty slice of 512 x 512; deflate reaches 1032."""


def check_pixels(path: epath.Path, header: pydicom.Dataset, *, hounsfield: bool) -> None:
    """Checks that the pixels are grey values of a layout that can be told from the header.

    Raises:
      DataError: colour, inverted or oddly packed pixels, or more of them than the file can hold.
    """
    photometric = text(header, "PhotometricInterpretation")
    colour = not photometric.startswith("MONOCHROME")
    if colour or whole(path, header, "SamplesPerPixel", 1) != 1:
        raise DataError(path, "a colour image, no grey values", "leave out secondary captures")
    # In CT the polarity only concerns display: rescaled values are HU either way.
    if photometric == "MONOCHROME1" and not hounsfield:
        raise DataError(
            path,
            "MONOCHROME1: high values are dark, unlike in every other scan",
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
    """Checks that a file is long enough for the pixels that it claims to hold.

    Raises:
      DataError: it is not, so that memory for the claim must not be allocated.
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
    """Decodes the frames of a file one after the other, as stored (rows, columns).

    Raises:
      DataError: no codec, or pixel data that is not what the header says.
    """
    syntax = transfer_syntax(path, header)
    check_codec(path, syntax)
    count, found = whole(path, header, "NumberOfFrames", 1) or 1, 0
    try:
        with content.open_file(path) as file:
            if not syntax.is_encapsulated:
                _check_length(path, header, file)
            # pydicom decodes from the file frame by frame, except when it must inflate it.
            source = pydicom.dcmread(file) if syntax.is_deflated else file
            for frame in pixels.iter_pixels(source, raw=True):
                found += 1
                if found <= count:
                    yield frame
    except DataError:
        raise
    except Exception:  # codecs raise whatever they like
        raise _damaged(path, f"the pixel data cannot be decoded as {syntax.name}") from None
    if found != count:
        raise _damaged(path, "the pixel data holds other frames than the header says")


def rescaled(stored: np.ndarray, slice_: Slice, header: pydicom.Dataset) -> np.ndarray:
    """The values of one slice, as `values.rescaled`; padding of CT becomes air."""
    plane = values.rescaled(stored, slice_.slope, slice_.intercept)
    if slice_.units != "HU":
        return plane
    air = np.isin(plane, _UNDECLARED_PADDING_HU) | _padding(slice_.path, header, stored)
    return np.where(air, np.int16(AIR_HU), plane)


def is_whole(slice_: Slice) -> bool:
    """Whether rescaled values are integers."""
    return slice_.slope == 1 and slice_.intercept.is_integer()


def _padding(path: epath.Path, header: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Voxels in the padding range (PS3.3 C.7.5.1.1.2), as a mask of the slice."""
    first = numbers(path, header, "PixelPaddingValue")
    last = numbers(path, header, "PixelPaddingRangeLimit") or first
    if first is None or last is None:
        return np.zeros(stored.shape, bool)
    # Implicit syntaxes mislead about the sign: only the stored bits are certain.
    bits = np.array([*first, *last]).astype(np.int64)
    sign = 1 << (whole(path, header, "BitsStored") - 1)
    bits &= 2 * sign - 1
    if stored.dtype.kind == "i":
        bits -= 2 * (bits & sign)
    low, high = np.sort(bits)
    return (low <= stored) & (stored <= high)


def check_codec(path: epath.Path, syntax: pydicom.uid.UID) -> None:
    """Raises: DataError, when nothing that is installed can decode the pixels."""
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
    """Refuses uncompressed pixels that are fewer or more than the header's, by a row or more.

    With a wrong BitsAllocated or Columns they would decode, to stripes.
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
