"""DICOM files with damaged or forged bytes."""

from __future__ import annotations

import gzip
import pathlib
import struct
import zlib
from collections.abc import Callable

from pydicom.uid import DeflatedExplicitVRLittleEndian

from tests.data.dicom_files import ct_slice, write
from tests.data.hostile import Kind, Maker
from tests.data.hostile_dicom import series


def _bytes(change: Callable[[bytes], bytes]) -> Maker:
    """A series one of whose files is changed."""

    def make(folder: pathlib.Path) -> pathlib.Path:
        path = write(folder, series()) / "03"
        path.write_bytes(change(path.read_bytes()))
        return folder

    return make


def _start(data: bytes) -> int:
    """Where the file meta information ends."""
    return 144 + int.from_bytes(data[140:144], "little")


def _insert(element: bytes) -> Maker:
    """Puts an element before all others."""
    return _bytes(lambda data: data[: _start(data)] + element + data[_start(data) :])


def _unknown_syntax(data: bytes) -> bytes:
    return data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")


def _deflated_bomb(folder: pathlib.Path) -> pathlib.Path:
    """2 GB of zeros in an element before the pixels."""
    write(folder, [ct_slice(0)])
    data = (folder / "03").read_bytes()
    meta = bytearray(data[: _start(data)])
    new = b"\x16\0" + DeflatedExplicitVRLittleEndian.encode()  # with its length
    meta = meta.replace(b"\x14\x001.2.840.10008.1.2.1\0", new)
    meta[140:144] = struct.pack("<I", len(meta) - 144)
    pack = zlib.compressobj(1, wbits=-15)
    element = struct.pack("<HH2sHI", 9, 0x1001, b"OB", 0, 1 << 31)
    body = pack.compress(element) + pack.flush(zlib.Z_FULL_FLUSH)
    zeros = pack.compress(bytes(1 << 24)) + pack.flush(zlib.Z_FULL_FLUSH)
    (folder / "03").write_bytes(
        meta + body + zeros * 128 + pack.compress(data[_start(data) :]) + pack.flush()
    )
    return folder


def _nested(depth: int) -> bytes:
    sequence = struct.pack("<HH2sHI", 9, 0x1001, b"SQ", 0, 0xFFFFFFFF)
    return (sequence + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)) * depth


_TEXT = "cut short, so a slice|not a readable DICOM file"

KINDS = (
    Kind(
        "file cut in its pixels", _bytes(lambda d: d[:-20]), "cut short|cannot be decoded|can hold"
    ),
    Kind("file cut in its header", _bytes(lambda d: d[:600]), "cut short"),
    Kind("empty slice", _bytes(lambda d: b""), "empty or cut short"),
    Kind("no preamble", _bytes(lambda d: d[132:]), "without its preamble"),
    Kind("gzipped slice", _bytes(gzip.compress), "gzipped DICOM"),
    Kind(
        "NaN position", _bytes(lambda d: d.replace(b"10.0\\-20", b" NaN\\-20")), "3 finite numbers"
    ),
    Kind("infinite position", _bytes(lambda d: d.replace(b"10.0\\-20", b"1e99\\-20")), "3 finite"),
    Kind("text for numbers", _bytes(lambda d: d.replace(b"0.8\\0.7", b"Doe^Jan")), "PixelSpacing"),
    Kind("unknown syntax", _bytes(_unknown_syntax), "is not an encoding of the standard"),
    Kind("deflated bomb of 2 GB", _deflated_bomb, "inflates beyond 1 GiB", bomb=True),
    Kind("10,000 sequences deep", _insert(_nested(10_000)), _TEXT, bomb=True),
    Kind(
        "element of 4 GB",
        _insert(struct.pack("<HH2sHI", 9, 0x1001, b"OB", 0, 0xFFFFFFF0)),
        _TEXT,
        bomb=True,
    ),
)
