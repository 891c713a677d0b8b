"""Hostile and odd npy and npz files, and folders of PNG slices."""

from __future__ import annotations

import io
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.data.hostile import CT, RAN, Kind, Maker, equals, file, hounsfield

_ZYX = np.ascontiguousarray(CT.T)
_GREY = (_ZYX // 16 + 64).clip(0).astype(np.uint8)


def npy(array: np.ndarray) -> bytes:
    """What numpy saves."""
    saved = io.BytesIO()
    np.save(saved, array)
    return saved.getvalue()


class _Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._folder / RAN),)


def _pickle(folder: pathlib.Path) -> pathlib.Path:
    array = np.full((1, 1, 1), None)
    array[0, 0, 0] = _Payload(folder)
    return file(npy(array), "scan.npy")(folder)


def _npy(array: np.ndarray) -> Maker:
    return file(npy(array), "scan.npy")


def _header(shape: str) -> bytes:
    text = f"{{'descr': '<i2', 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


def archive(members: dict[str, bytes]) -> bytes:
    """What numpy.savez_compressed makes of {name: file}."""
    saved = io.BytesIO()
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return saved.getvalue()


def _npz(members: dict[str, bytes], change: Callable[[bytes], bytes] = lambda data: data) -> Maker:
    return file(change(archive(members)), "scan.npz")


def _encrypted(data: bytes) -> bytes:
    """Sets the flag in the member's own header and in the directory."""
    at = data.index(b"PK\x01\x02") + 8
    return data[:6] + b"\1" + data[7:at] + b"\1" + data[at + 1 :]


def _slices(edit: Callable[[pathlib.Path], Any], array: np.ndarray = _GREY) -> Maker:
    def make(folder: pathlib.Path) -> pathlib.Path:
        for index, plane in enumerate(array):
            Image.fromarray(plane).save(folder / f"{index}.png")
        edit(folder)
        return folder

    return make


def _third(image: Image.Image) -> Maker:
    return _slices(lambda folder: image.save(folder / "3.png"))


def _coloured() -> Image.Image:
    image = Image.fromarray(_GREY[3]).convert("RGB")
    image.putpixel((2, 2), (1, 2, 3))
    return image


def _huge(folder: pathlib.Path) -> None:
    """A slice of a few bytes that claims 3.6 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)


def _cut(folder: pathlib.Path) -> None:
    data = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(data[: len(data) // 2])


def _npz_bomb(folder: pathlib.Path) -> pathlib.Path:
    return _npz({"ct.npy": npy(CT) + bytes(1 << 27)})(folder)


KINDS = (
    Kind("npy", _npy(CT), equals(), prepared=False),
    Kind("npy that runs a program", _pickle, "voxels of type object"),
    Kind(
        "npy that claims 2 GB",
        file(_header("(1024,) * 3") + bytes(99), "scan.npy"),
        "not a readable header",
    ),
    Kind(
        "npy that claims 2 GB, written out",
        file(_header("(1024, 1024, 1024)"), "scan.npy"),
        "ends before",
        bomb=True,
    ),
    Kind("npy with a negative axis", file(_header("(-1, 6, 7)"), "scan.npy"), "an image of shape"),
    Kind(
        "npy of true lengths",
        file(_header("(True, True, True)") + b"ab", "a.npy"),
        equals(np.full((1, 1, 1), 25185, "i2")),
        prepared=False,
    ),
    Kind("npy in Fortran order", _npy(np.asfortranarray(CT)), equals(), prepared=False),
    Kind("npy, complex", _npy(CT.astype("c8")), "voxels of type complex64"),
    Kind("npy, 2D", _npy(CT[0]), r"shape \(6, 7\), not"),
    Kind("npy of text", _npy(CT.astype("S4")), "voxels of type"),
    Kind("npz", _npz({"ct.npy": npy(CT)}), equals(), prepared=False),
    Kind("npz bomb", _npz_bomb, equals(), bomb=True, prepared=False),
    Kind(
        "npz that claims 2 GB",
        _npz({"ct.npy": _header("(1024, 1024, 1024)")}),
        "cannot hold",
        bomb=True,
    ),
    Kind(
        "npz with two volumes",
        _npz({"a.npy": npy(CT), "b.npy": npy(CT)}),
        "not exactly one is a volume",
    ),
    Kind("npz, encrypted", _npz({"ct.npy": npy(CT)}, _encrypted), "damaged or locked"),
    Kind("npz, cut short", _npz({"ct.npy": npy(CT)}, lambda d: d[:-30]), "damaged or locked"),
    Kind("npz of other things", _npz({"../../notes.txt": b"text"}), "not an image in a format"),
    Kind("slices", _slices(lambda f: None), equals(_GREY), prepared=False),
    Kind(
        "slices of 16 bit",
        _slices(lambda f: None, (_ZYX + 1024).astype("u2")),
        equals((_ZYX + 1024).astype("u2")),
        prepared=False,
    ),
    Kind("slices of two sizes", _third(Image.fromarray(_GREY[3]).resize((9, 9))), "another size"),
    Kind("slices with a gap", _slices(lambda f: (f / "3.png").unlink()), "slices are missing"),
    Kind(
        "slices with one number twice",
        _slices(lambda f: Image.fromarray(_GREY[3]).save(f / "03.png")),
        "second slice of the same",
    ),
    Kind("slices in colour", _third(_coloured()), "a colour image"),
    Kind("slices with a palette", _third(Image.fromarray(_GREY[3]).convert("P")), "of the kind P"),
    Kind("slices with a bomb", _slices(_huge), "more than 67,108,864 pixels", bomb=True),
    Kind("slices, one cut short", _slices(_cut), "truncated or damaged"),
    Kind(
        "slices, one of them text",
        _slices(lambda f: (f / "3.png").write_text("text")),
        "it is not one",
    ),
    Kind(
        "one slice alone",
        _slices(lambda f: None, _GREY[:1]),
        "a single slice",
        found=False,
        passed_over={".png": 1},
    ),
    Kind("grey slices as HU", _slices(lambda f: None), "8-bit image", hounsfield),
)
