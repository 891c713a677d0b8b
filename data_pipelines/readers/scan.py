"""Reads an image and the mask on its grid, each in any known format, as one `Volume`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from etils import epath

from data_pipelines import readers
from data_pipelines.volume import Units, Volume


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
    """Reads an image and, if one is given, the mask on its grid.

    Args:
      path: file or folder of the image; see `read_image`.
      mask: a label map, a folder with one file per structure, a DICOM SEG or an RTSTRUCT; see
        `read_mask`.
      units: units of the values. None means "HU" for a DICOM CT, else "raw".
      series: selects one of several series in a DICOM folder.
      rescale: slope and intercept instead of the file's own.
      spacing: mm along the array's axes, instead of the file's own.
      structures: names of the structures of the mask that get the values 1, 2, ...
      mask_names: label value -> name. None means the names in `structures`.
      patient_id: stored with the volume; it is never read from the file's tags.
      study_id: stored with the volume, like `patient_id`.

    Raises:
      DataError: a path does not exist, or its format is unknown or its content unreliable.
    """
    volume = readers.read_image(path, units=units, series=series, rescale=rescale, spacing=spacing)
    labels = None if mask is None else readers.read_mask(mask, like=volume, structures=structures)
    if mask_names is None:
        mask_names = dict(enumerate(structures, 1))
    return dataclasses.replace(
        volume,
        mask=labels,
        mask_names=dict(mask_names),
        patient_id=patient_id,
        study_id=study_id,
    )
