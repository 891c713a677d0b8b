"""Reads DICOM headers with pydicom and checks their numbers.

Any tag can contain private data such as a patient's name. So no message in this module quotes a
value, exceptions of the libraries are dropped (`from None`), and `quiet` suppresses their output.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import pydicom
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers import content

EXPORT = "copy or export it again"
_LOGGERS = ("pydicom", "highdicom", "PIL")
_LARGEST = 1e9
"""Upper limit for lengths in mm, rescale values and counts of a scan; keeps arithmetic finite."""
_HEAD = 4096
"""Bytes at the start of a file that include the file meta information with the transfer syntax."""
_DEFLATED_LIMIT = 1 << 30
"""Maximum inflated size in bytes: pydicom inflates a whole file, and 1 MB can inflate to 1 GB."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses warnings and logs of libraries that quote the values of tags, also of EXIF."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def read_header(path: epath.Path, tags: Sequence[str]) -> pydicom.Dataset:
    """Reads the named tags of a file and its file meta information, without the pixels.

    Raises:
      DataError: the file is not DICOM, or pydicom cannot parse it.
    """
    if content.is_gzipped(path):
        raise DataError(path, "a gzipped DICOM file", "unpack it (gunzip) with its whole series")
    try:
        with content.open_file(path) as file:
            _check_deflated(path, file)
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
    except DataError:
        raise
    except Exception:  # pydicom raises many types of errors for a damaged file
        raise DataError(path, "not a readable DICOM file", EXPORT) from None


def text(dataset: pydicom.Dataset, tag: str) -> str:
    """Returns the tag's value as text, "" if it is absent or unreadable.

    Use it only for comparisons and never print it, because it may be private.
    """
    try:
        return str(dataset.get(tag) or "")
    except Exception:  # pydicom converts values at access
        return ""


def numbers(
    path: epath.Path, dataset: pydicom.Dataset, tag: str, count: int = 1
) -> tuple[float, ...] | None:
    """Returns the `count` finite numbers of a tag; None if the tag is absent or empty.

    Raises:
      DataError: the tag has another value.
    """
    try:
        value = dataset.get(tag)
        if value is None or np.size(value) == 0 or str(value) == "":
            return None
        found = np.array(value, np.float64).reshape(-1)
    except Exception:  # pydicom converts values at access
        raise DataError(path, f"{tag} holds something else than numbers", EXPORT) from None
    if len(found) != count or not (np.abs(found) <= _LARGEST).all():  # also catches NaN
        wanted = "a finite number" if count == 1 else f"{count} finite numbers"
        raise DataError(path, f"{tag} does not hold {wanted} of a sensible size", EXPORT)
    return tuple(found.tolist())


def whole(path: epath.Path, dataset: pydicom.Dataset, tag: str, default: int | None = None) -> int:
    """Returns the whole number, 0 or more, of a tag.

    Raises:
      DataError: the tag is absent and there is no default, or it has another value.
    """
    found = numbers(path, dataset, tag)
    if found is None and default is not None:
        return default
    if found is None:
        raise DataError(path, f"no {tag}", EXPORT)
    if found[0] < 0 or not found[0].is_integer():
        raise DataError(path, f"{tag} is not a whole number", EXPORT)
    return int(found[0])


def items(path: epath.Path, dataset: pydicom.Dataset, tag: str) -> Sequence[pydicom.Dataset]:
    """Returns the items of a sequence; () if the sequence is absent.

    Raises:
      DataError: the sequence cannot be parsed.
    """
    try:
        value = dataset.get(tag)
    except Exception:  # pydicom parses sequences at access
        raise DataError(path, f"{tag} cannot be parsed", EXPORT) from None
    if value is None:
        return ()
    if not isinstance(value, pydicom.Sequence):
        raise DataError(path, f"{tag} is not a sequence", EXPORT)
    return value


def transfer_syntax(path: epath.Path, dataset: pydicom.Dataset) -> pydicom.uid.UID:
    """Returns the file's transfer syntax, the encoding of its pixels.

    Raises:
      DataError: the transfer syntax is missing, private or not part of the standard.
    """
    syntax = pydicom.uid.UID(text(dataset.file_meta, "TransferSyntaxUID"))
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise DataError(path, "TransferSyntaxUID is not an encoding of the standard", EXPORT)
    return syntax


def _check_deflated(path: epath.Path, file: IO[bytes]) -> None:
    """Raises DataError if a deflated file is too large to inflate; rewinds `file` to its start."""
    head = file.read(_HEAD)
    if pydicom.uid.DeflatedExplicitVRLittleEndian.encode() in head:
        # The first element of the file meta information is its length (PS3.10 7.1).
        file.seek(144 + int.from_bytes(head[140:144], "little"))
        inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while chunk := inflate.unconsumed_tail or file.read(1 << 20):
            size += len(inflate.decompress(chunk, 1 << 24))
            if size > _DEFLATED_LIMIT:
                cure = "rewrite it without deflation, for example with dcmconv +te"
                raise DataError(path, "a deflated file that inflates beyond 1 GiB", cure)
    file.seek(0)
