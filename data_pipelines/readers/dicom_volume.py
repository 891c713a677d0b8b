"""Reads the files of one DICOM series as a volume: sorted in space, in HU, without patient tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pydicom
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers import values
from data_pipelines.readers.dicom_frames import SLICE_TAGS, slices_of
from data_pipelines.readers.dicom_geometry import SliceStack, stack_slices
from data_pipelines.readers.dicom_header import quiet, read_header
from data_pipelines.readers.dicom_pixels import (
    PIXEL_TAGS,
    check_pixels,
    is_whole,
    rescaled,
    stored_frames,
)
from data_pipelines.volume import Units, Volume


@quiet()
def read_dicom_series(files: Sequence[epath.PathLike], *, units: Units | None = None) -> Volume:
    """Reads the slices of one series, in any order, as an array (slice, row, column).

    Slices are sorted along their normal. Rescale slope and intercept are applied. The values of a
    CT are int16 HU if that is exact, and padding voxels become air. Frames are decoded one by one.

    Args:
      files: files with one slice each, or enhanced multi-frame files.
      units: expected units; None accepts the file's units: "HU" for CT, else "raw". Other units
        than the file's are an error. A CT whose RescaleType is "US", unspecified, is "raw" unless
        `units` is "HU".

    Raises:
      DataError: the files are not one even, rectangular stack of decodable grey-value slices.
    """
    paths = [epath.Path(file) for file in files]
    if not paths:
        raise DataError("", "a series without files", "give at least one DICOM file")
    source = paths[0] if len(paths) == 1 else paths[0].parent
    headers = {path: read_header(path, (*SLICE_TAGS, *PIXEL_TAGS)) for path in paths}
    slices = []
    for path, header in headers.items():
        slices += (in_file := slices_of(path, header, units))
        check_pixels(path, header, hounsfield=in_file[0].units == "HU")
    stack = stack_slices(source, slices)
    native = stack.slices[0].units
    if units not in (None, native):
        raise DataError(
            source,
            f"the series holds {native!r} values, not {units!r}",
            f"leave out units, and use a recipe or a run for {native!r} values",
        )
    array = _array(stack, headers)
    return Volume(array=array, units=native, affine=stack.affine, source=str(source))


def _array(stack: SliceStack, headers: Mapping[epath.Path, pydicom.Dataset]) -> np.ndarray:
    """Returns the decoded stack, int16 if that is exact, else float32."""
    place = {(slice_.path, slice_.frame): i for i, slice_ in enumerate(stack.slices)}
    dtype = np.int16 if all(map(is_whole, stack.slices)) else np.float32
    values.count_bytes(stack.slices[0].path, stack.shape, np.dtype(dtype))
    array = np.empty(stack.shape, dtype)
    for path, header in headers.items():
        for frame, stored in enumerate(stored_frames(path, header)):
            index = place[path, frame]
            plane = rescaled(stored, stack.slices[index], header)
            if array.dtype == np.int16 and not -32768 <= plane.min() <= plane.max() <= 32767:
                array = array.astype(np.float32)
            array[index] = plane
    return array
