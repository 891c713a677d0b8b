"""Shared code of the NRRD and MetaImage readers: text headers before, or beside, plain voxels.

The tests compare these readers with ITK. ITK itself does not read the files for three reasons: it
assumes an identity affine if a header has none, it returns damaged MetaImage voxels without an
error, and it opens any file that a header names.
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
"""Maximum size of a header in bytes. A segmentation of a hundred organs needs a tenth of it."""
_CURE = "repair the header, or save the image again with ITK, 3D Slicer or another tool"


class Fields:
    """The fields of a header. Values are free text and may be private, so no error quotes them."""

    def __init__(self, path: epath.PathLike, pairs: Iterable[tuple[str, str]]):
        """Stores names and values; fields that are never read, such as comments, may repeat."""
        self.path = epath.Path(path)
        self._values: dict[str, set[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, set()).add(value)

    def refuse(self, problem: str, cure: str = _CURE) -> NoReturn:
        """Raises a `DataError` for this file, without its cause, which may quote a value."""
        raise DataError(self.path, problem, cure) from None

    def get(self, *names: str) -> str | None:
        """Returns the value of the first of these fields that exists; None if there is none."""
        name = next((name for name in names if name in self._values), None)
        if name is None:
            return None
        value, *others = self._values[name]
        return self.refuse(f"two values in the field {name!r}") if others else value

    def need(self, name: str) -> str:
        """Returns the value of a required field."""
        value = self.get(name)
        return self.refuse(f"no field {name!r} in the header") if value is None else value

    def numbers(self, count: int, *names: str) -> np.ndarray | None:
        """Returns `count` float64 from the first of these fields that exists; ignores brackets."""
        value = self.get(*names)
        if value is None:
            return None
        words = re.findall(r"[^\s(),]+", value)
        try:
            found = np.array([float(word) for word in words], np.float64).reshape(count)
        except ValueError:
            self.refuse(f"the field {names[0]!r} does not hold {count} numbers")
        values.check_lengths(self.path, found)  # before any multiplication can overflow
        return found

    def sizes(self, name: str) -> list[int]:
        """Returns the three whole numbers of a required field."""
        words = self.need(name).split()
        if len(words) != 3 or not all(re.fullmatch("[0-9]{1,18}", word) for word in words):
            self.refuse(f"the field {name!r} does not hold three lengths", "save one 3D image")
        return [int(word) for word in words]

    def whole(self, *names: str) -> int:
        """Returns a whole number of at least -1; 0 if the field is missing."""
        value = self.get(*names) or "0"
        if not re.fullmatch("-1|[0-9]{1,18}", value):
            self.refuse(f"the field {names[0]!r} is not a whole number")
        return int(value)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The position of the voxels in the file, and their geometry in the patient.

    Attributes:
      shape: (z, y, x), the slowest axis first.
      dtype: dtype of the stored numbers, with their byte order.
      data: the file with the voxels.
      start: offset in bytes of the voxels or of their compressed stream; -1 means that the voxels
        are the last bytes of the file.
      skip: bytes to skip after `start`, counted after unpacking.
      packed: whether the voxels are a gzip or zlib stream.
      spacing: mm along `shape`; None if the header does not state it.
      affine: (4, 4) index (z, y, x, 1) -> RAS+ mm; None if the header does not state all of it.
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
    """Reads the voxels of a layout as an array (z, y, x).

    Raises:
      DataError: the data file is too short, voxels are damaged, NaN or infinite, or the affine is
        singular.
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
    """Returns the affine of an array (z, y, x) to RAS+ mm.

    Args:
      directions: (3, 3) mm; the rows are the steps along x, y and z.
      origin: (3,) mm, the centre of the first voxel.
      signs: signs that convert the file's world axes to Right, Anterior, Superior.
    """
    affine = np.eye(4)
    affine[:3, :3] = directions[::-1].T
    affine[:3, 3] = origin
    return np.diag([*signs, 1.0]) @ affine


def data_file(fields: Fields, name: str) -> epath.Path:
    """Returns the data file that a header names; it must be in the header's folder or below.

    Raises:
      DataError: the data file is elsewhere or missing, or the voxels are spread over several files.
    """
    if name.split(None, 1)[:1] == ["LIST"] or "%" in name:
        fields.refuse("the voxels are spread over several files", "save the image as one file")
    inside = pathlib.PurePosixPath(name.replace("\\", "/").replace("\0", "/../"))
    folder = fields.path.parent
    data = folder / inside
    # Links are resolved: a link out of the folder would read a file that the user did not give.
    real = [pathlib.PurePath(os.path.realpath(os.fspath(path))) for path in (data, folder)]
    if ".." in inside.parts or not real[0].is_relative_to(real[1]):
        fields.refuse("its data file lies outside of its folder", "put both files into one folder")
    try:
        content.open_file(data).close()
    except DataError as error:
        # The message omits the name, which is free text if no such file exists.
        fields.refuse(f"its data file: {error.problem}", "put it where the header says")
    return data
