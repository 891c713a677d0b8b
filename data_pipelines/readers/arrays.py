"""Reads numpy arrays (.npy, .npz). They have voxels only: no units and no affine."""

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
"""Maximum size in bytes of the header of an array of numbers; numpy refuses longer ones."""
_KEYS = ("ct", "arr_0", "arr")
"""Names of the image in an archive: of RAD-ChestCT, of numpy by default, of CT-CHAT."""
_MOST_LISTED = 16
_SAVE = "save one array of real numbers with numpy.save(file, array, allow_pickle=False)"


def read_npy(path: epath.PathLike, *, units: Units = "raw") -> Volume:
    """Reads an array (D, H, W), or (1, D, H, W) as in M3D's prepared volumes.

    Args:
      path: the .npy file.
      units: units of the values.

    Raises:
      DataError: the file is not one finite 3D array of real numbers, or has pickled objects.
    """
    with content.open_file(path) as file:
        shape, dtype, order, start = _header(path, file)
    size = _size(path, shape, dtype)
    data = content.read_exactly(path, size, start=start)
    return _volume(path, data, shape, dtype, order, units)


def read_npz(path: epath.PathLike, *, units: Units = "raw") -> Volume:
    """Reads the array "ct", "arr_0" or "arr" of an archive, or else its only 3D array.

    Arguments and axes are those of `read_npy`.

    Raises:
      DataError: as in `read_npy`; or the archive is damaged, or it is not clear which array is the
        image.
    """
    try:
        with content.open_file(path) as file, zipfile.ZipFile(file) as archive:
            return _from_archive(path, archive, units)
    except DataError:
        raise
    except Exception:  # zipfile raises many types of errors
        problem = "the archive is truncated, damaged or locked"
        raise DataError(path, problem, "copy or download it again") from None


def _from_archive(path: epath.PathLike, archive: zipfile.ZipFile, units: Units) -> Volume:
    members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
    member = _chosen(path, archive, members)
    with archive.open(member) as file:
        shape, dtype, order, start = _header(path, file)
    size = _size(path, shape, dtype)
    # Both sizes are claims of the archive and may be wrong, so the size of the file limits them.
    packed = min(member.compress_size, epath.Path(path).stat().length)
    if start + size > min(member.file_size, packed * content.DEFLATE_LIMIT):
        raise DataError(path, "the archive cannot hold its array", "copy or download it again")
    with archive.open(member) as file:
        data = content.fill(path, size, iter(lambda: file.read(1 << 18), b""), skip=start)
    return _volume(path, data, shape, dtype, order, units)


def _chosen(
    path: epath.PathLike, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]
) -> zipfile.ZipInfo:
    """Returns the member of the archive that is the image."""
    if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
        raise DataError(path, "the archive uses a compression that numpy does not write", _SAVE)
    for key in _KEYS:
        for member in members:
            if member.filename == f"{key}.npy":
                return member
    shapes = [_shape_in(path, archive, member) for member in members[:_MOST_LISTED]]
    volumes = [member for member, shape in zip(members, shapes, strict=False) if _axes(shape)]
    if len(volumes) != 1 or len(members) > _MOST_LISTED:
        raise DataError(
            path,
            f"{len(members)} arrays of shapes {shapes}, and not exactly one is a volume",
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
    """Returns shape, dtype and order of an array, and the offset of its data in bytes."""
    start = io.BytesIO(file.read(_HEAD))
    try:
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(start)]
        shape, fortran, dtype = read(start)
    except Exception:  # the parser raises many types of errors, which quote the header
        raise DataError(path, "not a readable header of a numpy array", _SAVE) from None
    # numpy accepts True as a length in a header, but not as a length of a new array.
    return tuple(map(int, shape)), dtype, "F" if fortran else "C", start.tell()


def _axes(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns (D, H, W) of an array of shape (D, H, W) or (1, D, H, W), else None."""
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
