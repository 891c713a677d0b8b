"""Reads NRRD files, attached and detached (teem.sourceforge.net/nrrd/format.html)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from etils import epath

from data_pipelines.readers import content
from data_pipelines.readers.text_header import (
    LONGEST,
    Fields,
    Layout,
    data_file,
    read_layout,
    to_ras,
)
from data_pipelines.volume import Units, Volume

_TYPES = {
    name: np.dtype(code)
    for code, names in {
        "i1": "signed char, int8, int8_t",
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i4": "int, signed int, int32, int32_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i8": "longlong, long long, long long int, signed long long, signed long long int, "
        "int64, int64_t",
        "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}
_SPACES = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
"""Patient spaces, with the signs that convert their coordinates to RAS."""


def read_nrrd(path: epath.PathLike, *, units: Units = "raw") -> Volume:
    """Reads an NRRD image as an array (z, y, x), the slowest axis first.

    The volume has an affine only if the header has a patient space, directions and an origin. A
    spacing without these is kept.

    Args:
      path: the .nrrd file, or the .nhdr file with its data file in the same folder or below.
      units: units of the values; NRRD has no field for them.

    Raises:
      DataError: the file is not one readable, finite 3D image in raw or gzip encoding.
    """
    text, end, whole = _header(path)
    fields = Fields(path, _pairs(text))
    name = fields.get("datafile")
    if name is None and not whole:
        fields.refuse("the header has no end", "copy or download the file again")
    packed, skip = _encoding(fields)
    shape, dtype = _shape(fields), _dtype(fields)
    begin = end if name is None else 0
    spacing, affine = _place(fields)
    layout = Layout(
        shape=shape,
        dtype=dtype,
        data=fields.path if name is None else data_file(fields, name),
        start=-1 if skip < 0 else begin,
        skip=max(skip, 0),
        packed=packed,
        spacing=spacing,
        affine=affine,
    )
    return read_layout(path, layout, units)


def key_values(path: epath.PathLike) -> dict[str, str]:
    """Returns the free "key:=value" pairs of a header, such as the segments of 3D Slicer."""
    lines = (line.partition(":=") for line in _header(path)[0].split("\n")[1:])
    return {key: value.strip() for key, mark, value in lines if mark and not key.startswith("#")}


def _header(path: epath.PathLike) -> tuple[str, int, bool]:
    """Returns the text of the header, its length in bytes, and whether it has an end."""
    start = content.head(path, LONGEST)
    blank = re.search(rb"\n\r?\n", start)
    end = blank.end() if blank else len(start)
    return start[:end].decode("utf-8", "replace"), end, blank is not None


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yields the fields ("name: value"), without comments and free "key:=value" pairs."""
    for line in text.split("\n")[1:]:
        name, colon, value = line.partition(":")
        if colon and not value.startswith("=") and not line.startswith("#"):
            yield name.lower().replace(" ", ""), value.strip()


def _encoding(fields: Fields) -> tuple[bool, int]:
    """Returns whether the voxels are compressed, and the number of bytes to skip before them.

    The number -1 means that the voxels are the last bytes of the data.
    """
    encoding = fields.need("encoding").lower()
    if encoding not in ("raw", "gz", "gzip"):
        fields.refuse("an encoding that is neither raw nor gzip", "save it as raw or gzip")
    packed, skip = encoding != "raw", fields.whole("byteskip")
    if fields.whole("lineskip") or (packed and skip < 0):
        fields.refuse("lines, or bytes from the end, to skip", "save the image as one file")
    return packed, skip


def _shape(fields: Fields) -> tuple[int, ...]:
    kinds = set((fields.get("kinds") or "").lower().split())
    if fields.need("dimension") == "4" and "list" in kinds:
        fields.refuse(
            "segments that overlap, in layers (4D)",
            "in 3D Slicer, export one file per segment, and give the folder that holds them",
        )
    if fields.need("dimension") != "3" or not kinds <= {"domain", "space", "???"}:
        fields.refuse("not an image of three axes in space", "save one 3D grey-value image")
    return tuple(fields.sizes("sizes")[::-1])


def _dtype(fields: Fields) -> np.dtype:
    dtype = _TYPES.get(fields.need("type").lower())
    if dtype is None:
        fields.refuse("voxels of an unknown type", "save a grey-value or label image")
    if dtype.itemsize == 1:
        return dtype
    order = fields.need("endian").lower()
    if order not in ("little", "big"):
        fields.refuse("an endian that is neither little nor big")
    return dtype.newbyteorder("<" if order == "little" else ">")


def _place(fields: Fields) -> tuple[tuple[float, float, float] | None, np.ndarray | None]:
    """Returns spacing and affine of the array (z, y, x), None if the header does not state them."""
    for name in ("spaceunits", "units"):
        if not set((fields.get(name) or "").replace('"', " ").lower().split()) <= {"mm", "???"}:
            fields.refuse("lengths that are not in millimetres", "convert them to millimetres")
    directions = fields.numbers(9, "spacedirections")
    if directions is None:
        steps = fields.numbers(3, "spacings")
        # In this format NaN means unknown.
        if steps is None or np.isnan(steps).all():
            return None, None
        x, y, z = steps.tolist()
        return (z, y, x), None
    directions = directions.reshape(3, 3)
    x, y, z = np.linalg.norm(directions, axis=1).tolist()
    signs = _SPACES.get((fields.get("space") or "").lower())
    origin = fields.numbers(3, "spaceorigin")
    if signs is None or origin is None:
        return (z, y, x), None
    return (z, y, x), to_ras(directions, origin, signs)
