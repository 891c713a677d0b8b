"""What a file is, judged by its first bytes: names lie, and DICOM files often have none."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import IO, Literal

from etils import epath

from data_pipelines.errors import DataError

_GZIP = b"\x1f\x8b"
_HEAD = 540  # a NIfTI-2 header; DICOM and NIfTI-1 show themselves earlier


def file_format(path: epath.PathLike) -> Literal["dicom", "nifti", "unknown"]:
    """Recognises DICOM part 10 and single-file NIfTI, gzipped or not.

    Raises:
      DataError: the file is missing, empty, or a damaged gzip file.
    """
    with _open(path) as file:
        head = file.read(_HEAD)
    if not head:
        raise DataError(path, "the file is empty", "copy or export it again")
    if head.startswith(_GZIP):
        with _open(path) as file:
            head = _gunzip(path, gzip.GzipFile(fileobj=file), _HEAD)
    if head[128:132] == b"DICM":
        return "dicom"
    return "nifti" if head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0" else "unknown"


def read_bytes(path: epath.PathLike) -> bytes:
    """The whole file, decompressed if it is gzipped.

    Raises:
      DataError: the file is missing, or a truncated or damaged gzip file.
    """
    with _open(path) as file:
        data = file.read()
    if not data.startswith(_GZIP):
        return data
    return _gunzip(path, gzip.GzipFile(fileobj=io.BytesIO(data)), -1)


def _open(path: epath.PathLike) -> IO[bytes]:
    try:
        return epath.Path(path).open("rb")
    except OSError as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise DataError(path, problem, "check the path and its permissions") from error


def _gunzip(path: epath.PathLike, file: gzip.GzipFile, size: int) -> bytes:
    try:
        return file.read(size)
    except (EOFError, OSError, zlib.error) as error:
        cure = "copy or download it again and compare the file sizes"
        raise DataError(path, "the gzip file is truncated or damaged", cure) from error
