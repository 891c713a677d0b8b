"""What NRRD and MetaImage share: a header of text fields before, or beside, plain voxels.

ITK is what the tests hold these readers against, and not what reads the files: it makes up an
identity where a header is silent, returns damaged MetaImage voxels without an error, and opens
whatever file a header names.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable
from typing import NoReturn

import numpy as np
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers import content, values
from data_pipelines.volume import Units, Volume

LONGEST = 1 << 20
"""Bytes of a header; segmentations with a hundred described organs take a tenth of it."""
_CURE = "repair the header, or save the image again with ITK, 3D Slicer or another tool"


class Fields:
    """The fields of a header, which hold whatever somebody typed, so no error quotes a value."""

    def __init__(self, path: epath.PathLike, pairs: Iterable[tuple[str, str]]):
        """Takes names and values; comments and other fields that nobody asks for may repeat."""
        self.path = epath.Path(path)
        self._values: dict[str, set[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, set()).add(value)

    def refuse(self, problem: str, cure: str = _CURE) -> NoReturn:
        """Raises a `DataError` for this file; whatever was caught before may quote a value."""
        raise DataError(self.path, problem, cure) from None

    def get(self, *names: str) -> str | None:
        """The value of the first of these fields that is there."""
        name = next((name for name in names if name in self._values), None)
        if name is None:
            return None
        value, *others = self._values[name]
        return self.refuse(f"two values in the field {name!r}") if others else value

    def need(self, name: str) -> str:
        """The value of a field without which there is no image."""
        value = self.get(name)
        return self.refuse(f"no field {name!r} in the header") if value is None else value

    def numbers(self, count: int, *names: str) -> np.ndarray | None:
        """`count` float64 from the first of these fields that is there, brackets or not."""
        value = self.get(*names)
        if value is None:
            return None
        words = re.findall(r"[^\s(),]+", value)
        try:
            found = np.array([float(word) for word in words], np.float64).reshape(count)
        except ValueError:
            self.refuse(f"the field {names[0]!r} does not hold {count} numbers")
        values.check_lengths(self.path, found)  # here, before they are multiplied
        return found

    def sizes(self, name: str) -> list[int]:
        """Three whole numbers."""
        words = self.need(name).split()
        if len(words) != 3 or not all(re.fullmatch("[0-9]{1,18}", word) for word in words):
            self.refuse(f"the field {name!r} does not hold three lengths", "save one 3D image")
        return [int(word) for word in words]

    def whole(self, *names: str) -> int:
        """A whole number from -1 on; 0 when the field is not there."""
        value = self.get(*names) or "0"
        if not re.fullmatch("-1|[0-9]{1,18}", value):
            self.refuse(f"the field {names[0]!r} is not a whole number")
        return int(value)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the voxels are: in the file, and in the patient.

    Attributes:
      shape: (z, y, x), the slowest axis first.
      dtype: of the stored numbers, with their byte order.
      data: the file with the voxels.
      start: the byte at which they begin, packed or not; -1: they are the end of the file.
      skip: bytes to pass over from there, counted after unpacking.
      packed: whether they are a gzip or zlib stream.
      spacing: mm along `shape`, where the header states it.
      affine: (4, 4) index (z, y, x, 1) -> RAS+ mm, where the header states all of it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    data: epath.Path
    start: int
    skip: int
    packed: bool
    spacing: tuple[float, float, float] | None
    affine: np.ndarray | None


def read_layout(path: epath.PathLike, layout: Layout, units: Units) -> Volume:
    """Reads the voxels that a header describes, as (z, y, x).

    Raises:
      DataError: the data file cannot hold them, they are damaged, NaN or infinite, or the affine
        is singular.
    """
    size = values.count_bytes(path, layout.shape, layout.dtype)
    data = content.read_exactly(
        layout.data, size, start=layout.start, skip=layout.skip, packed=layout.packed
    )
    array = values.rescaled(values.as_array(data, layout.dtype, layout.shape), 1, 0)
    values.check_finite(path, array)
    values.check_lengths(path, layout.spacing)
    values.check_lengths(path, layout.affine)
    return Volume(
        array=array,
        units=units,
        affine=layout.affine,
        spacing=layout.spacing if layout.affine is None else None,
        source=str(path),
    )


def to_ras(directions: np.ndarray, origin: np.ndarray, signs: tuple[int, int, int]) -> np.ndarray:
    """The affine of an array (z, y, x).

    Args:
      directions: (3, 3) mm, the step along x, then y, then z.
      origin: (3,) mm, the centre of the first voxel.
      signs: what turns the file's world axes into Right, Anterior, Superior.
    """
    affine = np.eye(4)
    affine[:3, :3] = directions[::-1].T
    affine[:3, 3] = origin
    return np.diag([*signs, 1.0]) @ affine


def data_file(fields: Fields, name: str) -> epath.Path:
    """The data file that a header names, which has to lie in the header's folder or below.

    Raises:
      DataError: it lies elsewhere, is not there, or the voxels are spread over several files.
    """
    if name.split(None, 1)[:1] == ["LIST"] or "%" in name:
        fields.refuse("the voxels are spread over several files", "save the image as one file")
    inside = pathlib.PurePosixPath(name.replace("\\", "/").replace("\0", "/../"))
    folder = fields.path.parent
    data = folder / inside
    # Links are followed: one that leads out would show a file that its owner never gave.
    real = [pathlib.PurePath(os.path.realpath(os.fspath(path))) for path in (data, folder)]
    if ".." in inside.parts or not real[0].is_relative_to(real[1]):
        fields.refuse("its data file lies outside of its folder", "put both files into one folder")
    try:
        content.open_file(data).close()
    except DataError as error:
        # Without its name, which is free text as long as no file has it.
        fields.refuse(f"its data file: {error.problem}", "put it where the header says")
    return data
