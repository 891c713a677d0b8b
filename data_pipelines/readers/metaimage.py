"""Reads MetaImage files, .mha and .mhd (itk.org/Wiki/ITK/MetaIO/Documentation)."""

from __future__ import annotations

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

_LAST = "ElementDataFile"
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # always four bytes in this format
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_LPS = (-1, -1, 1)


def read_metaimage(path: epath.PathLike, *, units: Units = "raw") -> Volume:
    """Reads a MetaImage as an array (z, y, x), the slowest axis first.

    The volume has an affine only if the header has a matrix, an offset and a spacing. A spacing
    without the others is kept.

    Args:
      path: the .mha file, or the .mhd file with its data file in the same folder or below.
      units: units of the values; MetaImage has no field for them.

    Raises:
      DataError: the file is not one readable, finite 3D image of plain or zlib-compressed numbers.
    """
    lines = list(_lines(content.head(path, LONGEST)))
    fields = Fields(path, _pairs(lines))
    shape, dtype = _shape(fields), _dtype(fields)
    name = fields.need(_LAST)
    local = name.upper() == "LOCAL"
    packed = _flag(fields, False, "CompressedData")
    start = fields.whole("HeaderSize")
    if start and (local or packed):
        fields.refuse("a HeaderSize beside local or packed voxels", "save the image again")
    spacing, affine = _place(fields)
    layout = Layout(
        shape=shape,
        dtype=dtype,
        data=fields.path if local else data_file(fields, name),
        start=sum(map(len, lines)) if local else start,
        skip=0,
        packed=packed,
        spacing=spacing,
        affine=affine,
    )
    return read_layout(path, layout, units)


def _lines(start: bytes) -> Iterator[bytes]:
    """Yields the lines of the header, which ends with the field `ElementDataFile`."""
    for line in start.splitlines(keepends=True):
        yield line
        if line.split(b"=")[0].strip() == _LAST.encode():
            return


def _pairs(lines: list[bytes]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, equals, value = line.decode("utf-8", "replace").partition("=")
        if equals:
            yield name.strip(), value.strip()


def _flag(fields: Fields, default: bool, *names: str) -> bool:
    value = fields.get(*names)
    if value is None:
        return default
    if value.lower() not in ("true", "false"):
        fields.refuse(f"the field {names[0]!r} is neither True nor False")
    return value.lower() == "true"


def _shape(fields: Fields) -> tuple[int, ...]:
    one_channel = fields.get("ElementNumberOfChannels") in (None, "1")
    kind = fields.get("ObjectType") or "Image"
    if fields.need("NDims") != "3" or not one_channel or kind.lower() != "image":
        fields.refuse("not an image of three axes in space", "save one 3D grey-value image")
    return tuple(fields.sizes("DimSize")[::-1])


def _dtype(fields: Fields) -> np.dtype:
    code = _TYPES.get(fields.need("ElementType"))
    if code is None:
        fields.refuse("voxels of an unknown type", "save a grey-value or label image")
    if not _flag(fields, True, "BinaryData"):
        fields.refuse("voxels that are written as text", "save it as binary data")
    for name, neutral in (("Slope", 1), ("Offset", 0)):
        value = fields.numbers(1, f"ElementToIntensityFunction{name}")
        if value is not None and value[0] != neutral:
            fields.refuse("a function from elements to intensities", "apply it and save again")
    big = _flag(fields, False, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return np.dtype(code).newbyteorder(">" if big else "<")


def _place(fields: Fields) -> tuple[tuple[float, float, float] | None, np.ndarray | None]:
    """Returns spacing and affine of the array (z, y, x), None if the header does not state them."""
    if (fields.get("DistanceUnits") or "mm").lower() not in ("mm", "?"):
        fields.refuse("lengths that are not in millimetres", "convert them to millimetres")
    steps = fields.numbers(3, "ElementSpacing", "ElementSize")
    matrix = fields.numbers(9, "TransformMatrix", "Rotation", "Orientation")
    origin = fields.numbers(3, "Offset", "Position", "Origin")
    if steps is None:
        return None, None
    if not steps.min() > 0:
        fields.refuse("an ElementSpacing that is not positive")
    x, y, z = steps.tolist()
    if matrix is None or origin is None:
        return (z, y, x), None
    return (z, y, x), to_ras(matrix.reshape(3, 3) * steps[:, None], origin, _LPS)
