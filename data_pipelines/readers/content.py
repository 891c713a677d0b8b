"""Recognises formats by the first bytes of a file, and reads only the bytes that are needed.

Names and headers of files can be wrong. So a size in a header is compared with the size of the file
before memory is allocated, and a compressed file is unpacked only up to that size.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO, Literal

import numpy as np
from etils import epath

from data_pipelines import files
from data_pipelines.errors import DataError

Format = Literal["dicom", "nifti", "nrrd", "metaimage", "npy", "npz", "png", "jpeg", "unknown"]

DEFLATE_LIMIT = 1032
"""Maximum compression ratio of deflate: 258 bytes from 2 bits (zlib.net/zlib_tech.html)."""
_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_HEAD = 540  # bytes of a NIfTI-2 header; other formats are recognised by fewer
_PIECE = 1 << 18
_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"NRRD000", "nrrd"),
    (b"\x93NUMPY", "npy"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
)
_METAIMAGE = re.compile(rb"(\w+[ \t]*=[^\n]*\n)*NDims[ \t]*=")


def file_format(path: epath.PathLike) -> Format:
    """Returns the format of a file, judged by its content.

    DICOM and NIfTI are also recognised when they are gzipped.

    Raises:
      DataError: the file is missing, empty, or a damaged gzip file.
    """
    start = head(path, _HEAD)
    if start[128:132] == b"DICM":
        return "dicom"
    if start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0"):
        return "nifti"
    if is_gzipped(path):
        return "unknown"
    if start.startswith(_ZIP):
        return "npz" if _holds_arrays(path) else "unknown"
    if _METAIMAGE.match(start):
        return "metaimage"
    return magic(start)


def magic(start: bytes) -> Format:
    """Returns NRRD, PNG, JPEG or npy by the first eight bytes, else "unknown"."""
    return next((kind for sign, kind in _MAGIC if start.startswith(sign)), "unknown")


def is_gzipped(path: epath.PathLike) -> bool:
    """Returns whether the file starts with the magic number of gzip.

    Raises:
      DataError: the file is missing.
    """
    with open_file(path) as file:
        return file.read(len(_GZIP)) == _GZIP


def head(path: epath.PathLike, size: int) -> bytes:
    """Returns the first `size` bytes, or fewer if the file is shorter; unpacks gzip.

    Raises:
      DataError: the file is missing, empty, or a truncated or damaged gzip file.
    """
    with open_file(path) as file:
        start = file.read(size)
        if not start:
            raise DataError(path, "the file is empty", "copy or export it again")
        if start.startswith(_GZIP):
            file.seek(0)
            start = b""
            for piece in _unpacked(path, file, min(size, _PIECE)):
                start += piece
                if len(start) >= size:
                    break
    return start[:size]


def read_exactly(
    path: epath.PathLike, size: int, *, start: int = 0, skip: int = 0, packed: bool = False
) -> np.ndarray:
    """Reads exactly `size` bytes of a file; bytes after them are not read.

    Args:
      path: the file.
      size: number of bytes.
      start: offset of the data in the file; -1 means that the data are the last bytes of the file.
      skip: number of bytes to skip after `start`, counted after unpacking.
      packed: whether the data are a gzip or zlib stream.

    Returns:
      (size,) uint8.

    Raises:
      DataError: the file is too short, or its checksum is wrong.
    """
    with open_file(path) as file:
        length = epath.Path(path).stat().length
        start = length - size if start == -1 else start
        # Checked before the allocation: a header of a few bytes may claim terabytes.
        if start < 0 or skip + size > (length - start) * (DEFLATE_LIMIT if packed else 1):
            raise _too_short(path)
        file.seek(start if packed else start + skip)
        if packed:
            return fill(path, size, _unpacked(path, file, _PIECE), skip)
        return fill(path, size, iter(lambda: file.read(_PIECE), b""))


def fill(path: epath.PathLike, size: int, pieces: Iterator[bytes], skip: int = 0) -> np.ndarray:
    """Returns the `size` bytes of a stream after its first `skip` bytes, as (size,) uint8.

    Raises:
      DataError: the stream is too short.
    """
    array = np.empty(size, np.uint8)
    begin, end = -skip, 0  # of the current piece, as positions in the array
    for piece in pieces:
        end = begin + len(piece)
        first, last = max(begin, 0), min(end, size)
        if first < last:
            array[first:last] = np.frombuffer(piece, np.uint8)[first - begin : last - begin]
        begin = end
        # At the end one more piece is requested, because the stream's checksum comes with it.
        if end > size:
            break
    if end < size:
        raise _too_short(path)
    return array


class _Bounded(io.BufferedReader):
    """A local file whose `read` allocates no more memory than the file has bytes left.

    Python itself allocates the requested size, even if the file is shorter.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _PIECE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def open_file(path: epath.PathLike) -> BinaryIO:
    """Opens a file to read its bytes; a read beyond its end returns the bytes up to the end.

    Raises:
      DataError: the file is missing or cannot be read, or is a folder, pipe or device.
    """
    path = epath.Path(path)
    try:
        # epath takes a pipe for a file, and opening a pipe would wait forever.
        if files.is_local(path) and os.path.exists(path) and not os.path.isfile(path):
            raise DataError(path, "not a file", "give a file with an image")
        file = path.open("rb")
        return _Bounded(file.detach()) if isinstance(file, io.BufferedReader) else file
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        problem = "no such file" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise DataError(path, problem, "check the path and its permissions") from error


def _holds_arrays(path: epath.PathLike) -> bool:
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except Exception:  # the reader of npz files will report the error
        return True


def _unpacked(path: epath.PathLike, file: IO[bytes], piece: int) -> Iterator[bytes]:
    """Unpacks the gzip members, or the zlib stream, at the current position of the file."""
    packed = file.read(_PIECE)
    first = True
    # Other bytes may follow the last gzip member; the program gzip ignores them too.
    while first or packed.startswith(_GZIP):
        first = False
        stream = zlib.decompressobj(wbits=47)  # gzip or zlib, with their checksums
        while not stream.eof:
            try:
                yield stream.decompress(packed, piece)
            except zlib.error as error:
                raise _damaged(path) from error
            packed = stream.unconsumed_tail or stream.unused_data
            if len(packed) < len(_GZIP):  # the next member's magic number may be split
                packed += file.read(_PIECE)
            if not packed and not stream.eof:
                raise _damaged(path)


def _damaged(path: epath.PathLike) -> DataError:
    cure = "copy or download it again and compare the file sizes"
    return DataError(path, "the compressed data are truncated or damaged", cure)


def _too_short(path: epath.PathLike) -> DataError:
    return DataError(path, "the file ends before the image does", "copy or download it again")
