"""Readers: `read(path)` turns a scan of any known format, and its mask, into a Volume."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from etils import epath

from data_pipelines.readers.dicom import find_series, read_dicom_series
from data_pipelines.readers.image import read_image
from data_pipelines.readers.masks import organ_files, read_mask, structures_in
from data_pipelines.volume import Units, Volume

__all__ = [
    "find_series",
    "organ_files",
    "read",
    "read_dicom_series",
    "read_image",
    "read_mask",
    "structures_in",
]


def read(
    path: epath.PathLike,
    mask: epath.PathLike | None = None,
    *,
    units: Units | None = None,
    series: str | None = None,
    rescale: tuple[float, float] | None = None,
    spacing: tuple[float, float, float] | None = None,
    structures: Sequence[str] = (),
    mask_names: Mapping[int, str] | None = None,
    patient_id: str = "",
    study_id: str = "",
) -> Volume:
    """Reads an image and, if there is one, the mask on its grid.

    Args:
      path: the image: a file or folder, as `read_image`.
      mask: a label map, a folder with a file per structure, DICOM SEG or RTSTRUCT: `read_mask`.
      units: what the numbers are. None: "HU" for a DICOM CT, else "raw".
      series: which series of a DICOM folder.
      rescale: slope and intercept in place of the file's own.
      spacing: mm along the array's axes, in place of the file's own.
      structures: which structures of the mask become the values 1, 2, ...
      mask_names: label value -> name. None: the given structures.
      patient_id: to store with the volume; nothing is taken from the file's tags.
      study_id: as `patient_id`.

    Raises:
      DataError: nothing there, an unknown format, or a file that cannot be trusted.
    """
    volume = read_image(path, units=units, series=series, rescale=rescale, spacing=spacing)
    labels = None if mask is None else read_mask(mask, like=volume, structures=structures)
    if mask_names is None:
        mask_names = dict(enumerate(structures, 1))
    return dataclasses.replace(
        volume,
        mask=labels,
        mask_names=dict(mask_names),
        patient_id=patient_id,
        study_id=study_id,
    )
