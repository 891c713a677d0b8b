"""Folders of PNG and JPEG slices: every slice once, in order, in the grey of the file."""

from __future__ import annotations

import pathlib
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data_pipelines import readers
from data_pipelines.errors import DataError

NOISE = np.random.default_rng(0).integers(0, 256, (12, 8, 9), np.uint8)


def _save(folder: pathlib.Path, array: np.ndarray = NOISE, name: str = "{}.png") -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, plane in enumerate(array):
        Image.fromarray(plane).save(folder / name.format(index))
    return folder


@pytest.mark.parametrize("name", ["{}.png", "case7_{}_axial.PNG", "img-{:03d}.png", "{}0.png"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_slices_in_the_order_of_their_numbers(
    tmp_path: pathlib.Path, dtype: type, name: str
) -> None:
    """10 comes after 9, not after 1; 8 and 16 bits are kept; other files do not matter."""
    array = NOISE.astype(dtype) * (np.iinfo(dtype).max // 255)
    folder = _save(tmp_path / "series", array, name)
    (folder / "report.txt").write_text("text")
    (folder / "empty").write_bytes(b"")
    (folder / ".5.png").write_bytes(b"hidden")
    (folder / "more").mkdir()
    volume = readers.read(folder)
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == dtype and volume.source == str(folder)
    assert (volume.affine, volume.spacing, volume.units) == (None, None, "raw")
    assert readers.read(folder, units="unit", spacing=(3, 1, 1)).spacing == (3, 1, 1)


def test_names_lie(tmp_path: pathlib.Path) -> None:
    """A slice is what its bytes say; JPEG that saves grey as colours is grey."""
    for index, plane in enumerate(NOISE):
        path = tmp_path / (f"{index}" if index % 2 else f"{index}.jpg")
        Image.fromarray(plane).convert("RGB").save(path, "PNG" if index % 2 else "JPEG")
    array = readers.read(tmp_path).array
    np.testing.assert_array_equal(array[1::2], NOISE[1::2])
    assert np.abs(array[::2].astype(int) - NOISE[::2]).mean() < 20


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_grey_in_other_forms(tmp_path: pathlib.Path, mode: str) -> None:
    """Three equal channels and an alpha that hides nothing."""
    for index, plane in enumerate(NOISE):
        Image.fromarray(plane).convert(mode).save(tmp_path / f"{index}.png")
    np.testing.assert_array_equal(readers.read(tmp_path).array, NOISE)


def _replace(folder: pathlib.Path, image: Image.Image, **options: object) -> None:
    image.save(folder / "3.png", **options)  # type: ignore[arg-type]


def _grey(mode: str = "L") -> Image.Image:
    return Image.fromarray(NOISE[3]).convert(mode)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, depth: int, colour: int, pixels: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _text_bomb(folder: pathlib.Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Patient", "smith" * 10_000_000, zip=True)
    _replace(folder, _grey(), pnginfo=texts)


def _half(folder: pathlib.Path) -> None:
    data = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(data[: len(data) // 2])


def _flipped(folder: pathlib.Path) -> None:
    data = bytearray((folder / "3.png").read_bytes())
    data[len(data) // 2] ^= 16
    (folder / "3.png").write_bytes(bytes(data))


def _coloured() -> Image.Image:
    image = _grey("RGB")
    image.putpixel((2, 2), (1, 2, 3))
    return image


def _see_through() -> Image.Image:
    image = _grey("RGBA")
    image.putpixel((2, 2), (*image.getpixel((2, 2))[:3], 7))  # type: ignore[index]
    return image


@pytest.mark.parametrize(
    ("break_", "problem", "name"),
    [
        (lambda f: (f / "3.png").unlink(), "slices are missing before it", "4.png"),
        (lambda f: _replace(f, _grey().resize((9, 9))), "another size", "3.png"),
        (lambda f: _replace(f, _coloured()), "a colour image", "3.png"),
        (lambda f: _replace(f, _see_through()), "partly transparent", "3.png"),
        (lambda f: _replace(f, _grey("P")), "8 bit pixels of the kind P", "3.png"),
        (lambda f: _replace(f, _grey("1")), "1 bit pixels", "3.png"),
        (lambda f: _replace(f, _grey(), transparency=3), "transparent colour", "3.png"),
        (lambda f: _grey("CMYK").save(f / "3.png", "JPEG"), "of the kind CMYK", "3.png"),
        (
            lambda f: _replace(f, _grey(), save_all=True, append_images=[_grey().rotate(90)] * 2),
            "several frames",
            "3.png",
        ),
        (
            lambda f: (f / "3.png").write_bytes(_png(9, 8, 16, 2, bytes(8 * (1 + 9 * 6)))),
            "16 bit pixels of the kind RGB",
            "3.png",
        ),
        (
            lambda f: (f / "3.png").write_bytes(_png(9, 8, 4, 0, bytes(8 * (1 + 5)))),
            "4 bit pixels",
            "3.png",
        ),
        (
            lambda f: Image.fromarray(NOISE[3].astype(np.uint16)).save(f / "3.png"),
            "8 and 16 bit",
            "3.png",
        ),
        (_half, "truncated or damaged", "3.png"),
        (_flipped, "truncated or damaged", "3.png"),
        (_text_bomb, "truncated or damaged", "3.png"),
        (
            lambda f: (f / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n"),
            "truncated or damaged",
            "3.png",
        ),
        (lambda f: (f / "3.png").write_bytes(b""), "named as an image, but", "3.png"),
        (lambda f: (f / "12.png").write_text("text"), "named as an image, but", "12.png"),
        (lambda f: _grey().save(f / "03.png"), "a second slice of the same number", "3.png"),
        (lambda f: _grey().save(f / "3.jpg"), "a second slice of the same number", "3.png"),
        (lambda f: _grey().save(f / "3_b.png"), "differ in more than a number", ""),
        (lambda f: _grey().save(f / "cover.png"), "differ in more than a number", ""),
    ],
)
def test_refuses(tmp_path: pathlib.Path, break_: object, problem: str, name: str) -> None:
    """One doubtful slice among twelve; the error names it, and never what is written inside."""
    folder = _save(tmp_path / "series")
    break_(folder)  # type: ignore[operator]
    with warnings.catch_warnings(action="error"), pytest.raises(DataError, match=problem) as caught:
        readers.read(folder)
    assert pathlib.Path(caught.value.path) == folder / name and caught.value.cure
    assert "smith" not in str(caught.value)


def test_refuses_bombs(tmp_path: pathlib.Path) -> None:
    """Slices of a few bytes that claim gigapixels, above and below Pillow's own limits."""
    for side in (60_000, 12_000, 9_000):
        for index in range(2):
            (tmp_path / f"{index}.png").write_bytes(_png(side, side, 8, 0, b""))
        with pytest.raises(DataError, match=r"more than 67,108,864 pixels"):
            readers.read(tmp_path)


def test_a_chunk_that_claims_gigabytes_takes_none(tmp_path: pathlib.Path) -> None:
    """Pillow takes the length of a chunk for granted; the pixels themselves are whole."""
    data = bytearray((_save(tmp_path) / "3.png").read_bytes())
    data[33:37] = b"\xff\xff\xff\xf0"
    (tmp_path / "3.png").write_bytes(bytes(data))
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(readers.read(tmp_path).array, NOISE)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_refuses_what_is_no_series(tmp_path: pathlib.Path) -> None:
    """A single slice, two slices without numbers, and two series in one folder."""
    with pytest.raises(DataError, match="a single slice"):
        readers.read(_save(tmp_path / "one", NOISE[:1]))
    with pytest.raises(DataError, match="a second slice"):
        _grey().save(_save(tmp_path / "two", NOISE[:1], "a.png") / "a.jpg")
        readers.read(tmp_path / "two")
    _save(tmp_path / "both", NOISE, "1_{}.png")
    with pytest.raises(DataError, match="two numbers that change"):
        readers.read(_save(tmp_path / "both", NOISE, "2_{}.png"))
