"""What a file is, judged by its first bytes, and reading no more of it than is needed.

Names lie, and headers do too: what one claims is held against the file's size before memory is
taken, and a compressed file is unpacked only as far as the claim goes.
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
"""Times that deflate can shrink data at best: 258 bytes from 2 bits (zlib.net/zlib_tech.html)."""
_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_HEAD = 540  # a NIfTI-2 header; the others show themselves earlier
_PIECE = 1 << 18
_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"NRRD000", "nrrd"),
    (b"\x93NUMPY", "npy"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
)
_METAIMAGE = re.compile(rb"(\w+[ \t]*=[^\n]*\n)*NDims[ \t]*=")


def file_format(path: epath.PathLike) -> Format:
    """Recognises a file by its content; DICOM and NIfTI also when they are gzipped.

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
    """The formats that eight bytes tell: NRRD, PNG, JPEG, npy; else "unknown"."""
    return next((kind for sign, kind in _MAGIC if start.startswith(sign)), "unknown")


def is_gzipped(path: epath.PathLike) -> bool:
    """Whether the file starts as gzip does.

    Raises:
      DataError: the file is missing.
    """
    with open_file(path) as file:
        return file.read(len(_GZIP)) == _GZIP


def head(path: epath.PathLike, size: int) -> bytes:
    """The first `size` bytes, or what there is of them, unpacked if the file is gzipped.

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
    """Bytes of a file; whatever follows them is left alone.

    Args:
      path: the file.
      size: how many bytes.
      start: where the data begin in the file; -1: they are its end.
      skip: bytes to pass over from there, counted after unpacking.
      packed: the data are a gzip or zlib stream.

    Returns:
      (size,) uint8.

    Raises:
      DataError: the file cannot hold that much, ends before, or its checksum is wrong.
    """
    with open_file(path) as file:
        length = epath.Path(path).stat().length
        start = length - size if start == -1 else start
        # Before the allocation: a header of a few bytes may claim terabytes.
        if start < 0 or skip + size > (length - start) * (DEFLATE_LIMIT if packed else 1):
            raise _too_short(path)
        file.seek(start if packed else start + skip)
        if packed:
            return fill(path, size, _unpacked(path, file, _PIECE), skip)
        return fill(path, size, iter(lambda: file.read(_PIECE), b""))


def fill(path: epath.PathLike, size: int, pieces: Iterator[bytes], skip: int = 0) -> np.ndarray:
    """Gathers `size` bytes of a stream after its first `skip`; (size,) uint8.

    Raises:
      DataError: the stream ends before.
    """
    array = np.empty(size, np.uint8)
    begin, end = -skip, 0  # of the piece, in the array
    for piece in pieces:
        end = begin + len(piece)
        first, last = max(begin, 0), min(end, size)
        if first < last:
            array[first:last] = np.frombuffer(piece, np.uint8)[first - begin : last - begin]
        begin = end
        # At the very end another piece is asked for: with it comes the stream's checksum.
        if end > size:
            break
    if end < size:
        raise _too_short(path)
    return array


class _Bounded(io.BufferedReader):
    """A local file. Python takes memory for as many bytes as it is asked for, read or not."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _PIECE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def open_file(path: epath.PathLike) -> BinaryIO:
    """Opens a file to read its bytes; whoever asks it for too many gets those that there are.

    Raises:
      DataError: there is none, it cannot be read, or it is a folder, pipe or device.
    """
    path = epath.Path(path)
    try:
        # Of a pipe epath says that it is a file, and opening one would wait for ever.
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
    except Exception:  # it says so itself once its reader opens it
        return True


def _unpacked(path: epath.PathLike, file: IO[bytes], piece: int) -> Iterator[bytes]:
    """Unpacks the gzip members, or the zlib stream, that begin where the file stands."""
    packed = file.read(_PIECE)
    first = True
    # Bytes that are no gzip member may follow the last one, as for the program gzip.
    while first or packed.startswith(_GZIP):
        first = False
        stream = zlib.decompressobj(wbits=47)  # gzip or zlib, with their checksums
        while not stream.eof:
            try:
                yield stream.decompress(packed, piece)
            except zlib.error as error:
                raise _damaged(path) from error
            packed = stream.unconsumed_tail or stream.unused_data
            if len(packed) < len(_GZIP):  # the next member's magic may be cut in two
                packed += file.read(_PIECE)
            if not packed and not stream.eof:
                raise _damaged(path)


def _damaged(path: epath.PathLike) -> DataError:
    cure = "copy or download it again and compare the file sizes"
    return DataError(path, "the compressed data are truncated or damaged", cure)


def _too_short(path: epath.PathLike) -> DataError:
    return DataError(path, "the file ends before the image does", "copy or download it again")
