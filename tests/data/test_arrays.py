"""NumPy arrays: voxels are read as saved, no code runs, and the file limits the memory."""

from __future__ import annotations

import io
import pathlib
import tracemalloc
import zipfile

import numpy as np
import pytest

from data_pipelines import readers
from data_pipelines.errors import DataError

NOISE = np.random.default_rng(0).integers(-1000, 1000, (3, 4, 5)).astype(np.int16)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _header(text: str) -> bytes:
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


def _zip(members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize(
    "saved",
    [
        NOISE,
        NOISE[None],
        NOISE.astype(">i2"),
        np.asfortranarray(NOISE),
        np.asfortranarray(NOISE[None]),
    ],
)
def test_reads_what_was_saved(tmp_path: pathlib.Path, saved: np.ndarray) -> None:
    """With a channel or without, in any byte order and order of axes, alone or in an archive."""
    path = tmp_path / "scan"
    for data in (_npy(saved), _zip({"ct.npy": _npy(saved)}), _zip({"x.npy": _npy(saved)}, 0)):
        path.write_bytes(data)
        volume = readers.read(path)
        np.testing.assert_array_equal(volume.array, NOISE)
        assert volume.array.dtype == np.int16 and volume.array.dtype.isnative
        assert (volume.affine, volume.spacing, volume.units) == (None, None, "raw")


def test_the_version_of_m3d(tmp_path: pathlib.Path) -> None:
    """float32 (1, 32, 256, 256) as M3D prepares it, and float64 becomes float32."""
    array = np.random.default_rng(0).random((1, 32, 256, 256)).astype(np.float32)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(readers.read(tmp_path / "a.npy").array, array[0])
    np.save(tmp_path / "a.npy", array[:, :2].astype(np.float64))
    assert readers.read(tmp_path / "a.npy").array.dtype == np.float32


def test_chooses_the_image_of_an_archive(tmp_path: pathlib.Path) -> None:
    """The usual names first, then the only array with three axes."""
    path, other = tmp_path / "scan.npz", np.zeros((2, 2, 2), np.int16)
    for key in ("ct", "arr_0", "arr"):
        np.savez_compressed(path, **{"another": other, key: NOISE})
        np.testing.assert_array_equal(readers.read(path).array, NOISE)
    np.savez(path, spacing=np.ones(3), anything=NOISE)
    np.testing.assert_array_equal(readers.read(path).array, NOISE)
    np.savez(path, doe_jane=NOISE, john=other)
    with pytest.raises(DataError, match=r"2 arrays of shapes \[\(3, 4, 5\), \(2, 2, 2\)\]") as one:
        readers.read(path)
    assert "doe" not in str(one.value)


def _lying_about_size(data: bytes) -> bytes:
    """An archive whose directory says that its one member is 4 GB large."""
    at = data.index(b"PK\x01\x02") + 24
    return data[:at] + b"\xff\xff\xff\xf0" + data[at + 4 :]


_HUGE = "{'descr': '<i2', 'fortran_order': False, 'shape': (1024, 1024, 1024), }\n"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (_npy(NOISE)[:-1], "ends before"),
        (_npy(NOISE)[:70], "not a readable header"),
        (_npy(NOISE)[:7], "not a readable header"),
        (_npy(NOISE[0]), r"shape \(4, 5\), not"),
        (_npy(np.stack([NOISE, NOISE])), r"shape \(2, 3, 4, 5\), not"),
        (_npy(NOISE.astype(np.complex64)), "voxels of type complex64"),
        (_npy(NOISE.astype("S4")), "voxels of type"),
        (_npy(np.full((1, 1, 1), None)), "voxels of type object"),
        (_npy(np.zeros((2, 2, 2), [("smith", "i2")])), "voxels of type several"),
        (_npy(np.zeros((2, 0, 2))), "an image of shape"),
        (_npy(np.full((2, 2, 2), np.nan)), "8 voxels are NaN"),
        (_npy(np.full((2, 2, 2), 1e300)), "8 voxels are NaN or infinite"),
        (_header(_HUGE), "ends before"),
        (_header(_HUGE.replace("1024", "10240")), "an image of shape"),
        (_header(_HUGE.replace("1024", "-1")), "an image of shape"),
        (_header("(" * 9000), "not a readable header"),
        (_header("__import__('os').abort()"), "not a readable header"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff", "not a readable header"),
        (b"\x93NUMPY\x09\0\x10\0", "not a readable header"),
        (_zip({"a.npy": _npy(NOISE)})[:-30], "truncated, damaged or locked"),
        (_zip({"a.npy": b"no array"}), "not a readable header"),
        (_zip({"a.npy": _header(_HUGE)}), "cannot hold its array"),
        (_lying_about_size(_zip({"a.npy": _header(_HUGE)})), "cannot hold its array"),
        (_zip({"ct.npy": _npy(np.full((1, 1, 1), None))}), "voxels of type object"),
        (_zip({"ct.npy": _npy(NOISE)}, zipfile.ZIP_BZIP2), "compression that numpy does not write"),
        (_zip({f"{i}.npy": _npy(NOISE) for i in range(40)}), "40 arrays"),
        (_zip({"notes.txt": b"text"}), "not an image in a format"),
    ],
)
def test_refuses(tmp_path: pathlib.Path, data: bytes, problem: str) -> None:
    """Files that are no volume of real numbers, without allocating the memory that they claim."""
    path = tmp_path / "scan"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=problem) as caught:
            readers.read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()
    assert caught.value.path == str(path) and caught.value.cure


def test_a_flipped_bit_in_an_archive(tmp_path: pathlib.Path) -> None:
    """The archive's checksum is checked."""
    data = bytearray(_zip({"a.npy": _npy(NOISE)}, zipfile.ZIP_STORED))
    data[200] ^= 1
    (tmp_path / "scan.npz").write_bytes(bytes(data))
    with pytest.raises(DataError, match="truncated, damaged"):
        readers.read(tmp_path / "scan.npz")
