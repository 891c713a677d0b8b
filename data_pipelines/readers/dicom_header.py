"""DICOM headers through pydicom, as checked numbers.

A tag can hold anything, a patient's name included. So no message here quotes a value, foreign
exceptions are dropped (`from None`), and `quiet` keeps back what the libraries would print.
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
"""No length in mm, rescale value or count of a scan is larger; keeps arithmetic finite."""
_HEAD = 4096
"""Bytes that hold the file meta information, and with it the transfer syntax."""
_DEFLATED_LIMIT = 1 << 30
"""Bytes; pydicom inflates a deflated file as a whole, and 1 MB can claim a gigabyte."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps back warnings and logs of libraries that quote the values of tags, EXIF's too."""
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
    """Reads the named tags of a file, and its file meta information, but no pixels.

    Raises:
      DataError: not a DICOM file, or one that pydicom cannot follow.
    """
    if content.is_gzipped(path):
        raise DataError(path, "a gzipped DICOM file", "unpack it (gunzip) with its whole series")
    try:
        with content.open_file(path) as file:
            _check_deflated(path, file)
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
    except DataError:
        raise
    except Exception:  # a damaged file makes pydicom raise whatever its parsers run into
        raise DataError(path, "not a readable DICOM file", EXPORT) from None


def text(dataset: pydicom.Dataset, tag: str) -> str:
    """The tag's value to compare with, never to show; "" when absent or unreadable."""
    try:
        return str(dataset.get(tag) or "")
    except Exception:  # pydicom converts values when they are asked for
        return ""


def numbers(
    path: epath.Path, dataset: pydicom.Dataset, tag: str, count: int = 1
) -> tuple[float, ...] | None:
    """The tag's `count` finite numbers; None when it is absent or empty.

    Raises:
      DataError: it holds something else.
    """
    try:
        value = dataset.get(tag)
        if value is None or np.size(value) == 0 or str(value) == "":
            return None
        found = np.array(value, np.float64).reshape(-1)
    except Exception:  # pydicom converts values when they are asked for
        raise DataError(path, f"{tag} holds something else than numbers", EXPORT) from None
    if len(found) != count or not (np.abs(found) <= _LARGEST).all():  # also catches NaN
        wanted = "a finite number" if count == 1 else f"{count} finite numbers"
        raise DataError(path, f"{tag} does not hold {wanted} of a sensible size", EXPORT)
    return tuple(found.tolist())


def whole(path: epath.Path, dataset: pydicom.Dataset, tag: str, default: int | None = None) -> int:
    """The tag's whole number, 0 or more.

    Raises:
      DataError: it is absent and there is no default, or holds something else.
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
    """The items of a sequence; () when it is absent.

    Raises:
      DataError: it cannot be parsed.
    """
    try:
        value = dataset.get(tag)
    except Exception:  # pydicom parses sequences when they are asked for
        raise DataError(path, f"{tag} cannot be parsed", EXPORT) from None
    if value is None:
        return ()
    if not isinstance(value, pydicom.Sequence):
        raise DataError(path, f"{tag} is no sequence", EXPORT)
    return value


def transfer_syntax(path: epath.Path, dataset: pydicom.Dataset) -> pydicom.uid.UID:
    """How the file's pixels are encoded; one that the standard knows.

    Raises:
      DataError: the file does not say, or names something else.
    """
    syntax = pydicom.uid.UID(text(dataset.file_meta, "TransferSyntaxUID"))
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise DataError(path, "TransferSyntaxUID names no encoding of the standard", EXPORT)
    return syntax


def _check_deflated(path: epath.Path, file: IO[bytes]) -> None:
    """Refuses deflated files that are too large to inflate; leaves `file` at its start."""
    head = file.read(_HEAD)
    if pydicom.uid.DeflatedExplicitVRLittleEndian.encode() in head:
        # The first element of the file meta information says where it ends (PS3.10 7.1).
        file.seek(144 + int.from_bytes(head[140:144], "little"))
        inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while chunk := inflate.unconsumed_tail or file.read(1 << 20):
            size += len(inflate.decompress(chunk, 1 << 24))
            if size > _DEFLATED_LIMIT:
                cure = "rewrite it without deflation, for example with dcmconv +te"
                raise DataError(path, "a deflated file that inflates beyond 1 GiB", cure)
    file.seek(0)
