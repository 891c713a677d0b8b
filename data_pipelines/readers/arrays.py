"""Arrays that numpy saved (.npy, .npz): voxels and nothing else, so no units and no place."""

from __future__ import annotations

import io
import zipfile
from typing import IO, Literal

import numpy as np
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers import content, values
from data_pipelines.volume import Units, Volume

_HEAD = 1 << 14
"""Bytes that hold the header of an array of numbers; numpy itself refuses longer ones."""
_KEYS = ("ct", "arr_0", "arr")
"""Names of the image in an archive: RAD-ChestCT's, numpy's own, CT-CHAT's."""
_MOST_LISTED = 16
_SAVE = "save one array of real numbers with numpy.save(file, array, allow_pickle=False)"


def read_npy(path: epath.PathLike, *, units: Units = "raw") -> Volume:
    """Reads an array (D, H, W), or (1, D, H, W) as M3D's prepared volumes are.

    Args:
      path: .npy.
      units: of the values.

    Raises:
      DataError: not one finite 3D array of real numbers, or an array of pickled objects.
    """
    with content.open_file(path) as file:
        shape, dtype, order, start = _header(path, file)
    size = _size(path, shape, dtype)
    data = content.read_exactly(path, size, start=start)
    return _volume(path, data, shape, dtype, order, units)


def read_npz(path: epath.PathLike, *, units: Units = "raw") -> Volume:
    """Reads the array "ct", "arr_0" or "arr" of an archive, or its only 3D one; as `read_npy`.

    Raises:
      DataError: as `read_npy`, or the archive is damaged, or which array is meant is open.
    """
    try:
        with content.open_file(path) as file, zipfile.ZipFile(file) as archive:
            return _from_archive(path, archive, units)
    except DataError:
        raise
    except Exception:  # zipfile raises whatever it likes
        problem = "the archive is truncated, damaged or locked"
        raise DataError(path, problem, "copy or download it again") from None


def _from_archive(path: epath.PathLike, archive: zipfile.ZipFile, units: Units) -> Volume:
    members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
    member = _chosen(path, archive, members)
    with archive.open(member) as file:
        shape, dtype, order, start = _header(path, file)
    size = _size(path, shape, dtype)
    # Both sizes are only what the archive claims, so the file's own is asked as well.
    packed = min(member.compress_size, epath.Path(path).stat().length)
    if start + size > min(member.file_size, packed * content.DEFLATE_LIMIT):
        raise DataError(path, "the archive cannot hold its array", "copy or download it again")
    with archive.open(member) as file:
        data = content.fill(path, size, iter(lambda: file.read(1 << 18), b""), skip=start)
    return _volume(path, data, shape, dtype, order, units)


def _chosen(
    path: epath.PathLike, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]
) -> zipfile.ZipInfo:
    """The one member that holds the image."""
    if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
        raise DataError(path, "packed in another way than numpy does", _SAVE)
    for key in _KEYS:
        for member in members:
            if member.filename == f"{key}.npy":
                return member
    shapes = [_shape_in(path, archive, member) for member in members[:_MOST_LISTED]]
    volumes = [member for member, shape in zip(members, shapes, strict=False) if _axes(shape)]
    if len(volumes) != 1 or len(members) > _MOST_LISTED:
        raise DataError(
            path,
            f"{len(members)} arrays, of shapes {shapes}, and none or several are a volume",
            f"save one volume, or name the image {_KEYS[0]!r}",
        )
    return volumes[0]


def _shape_in(
    path: epath.PathLike, archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> tuple[int, ...]:
    with archive.open(member) as file:
        return _header(path, file)[0]


def _header(
    path: epath.PathLike, file: IO[bytes]
) -> tuple[tuple[int, ...], np.dtype, Literal["C", "F"], int]:
    """Shape, type and order of an array, and the byte where its numbers begin."""
    start = io.BytesIO(file.read(_HEAD))
    try:
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(start)]
        shape, fortran, dtype = read(start)
    except Exception:  # the parser raises whatever it likes, and quotes the header
        raise DataError(path, "not a readable header of a numpy array", _SAVE) from None
    # numpy takes True for a length, but makes no array of it.
    return tuple(map(int, shape)), dtype, "F" if fortran else "C", start.tell()


def _axes(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """(D, H, W) of an array with these axes, one channel before them or none; else None."""
    shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    return shape if len(shape) == 3 else None


def _size(path: epath.PathLike, shape: tuple[int, ...], dtype: np.dtype) -> int:
    if not _axes(shape):
        problem = f"an array of shape {shape}, not (D, H, W)"
        raise DataError(path, problem, "save one 3D image per file")
    return values.count_bytes(path, shape, dtype)


def _volume(
    path: epath.PathLike,
    data: np.ndarray,
    shape: tuple[int, ...],
    dtype: np.dtype,
    order: Literal["C", "F"],
    units: Units,
) -> Volume:
    array = values.as_array(data, dtype, shape[-3:], order)
    array = values.rescaled(array, 1, 0)
    values.check_finite(path, array)
    return Volume(array=array, units=units, source=str(path))
