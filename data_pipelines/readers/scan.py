"""An image and the mask on its grid, each of any known format, as one Volume."""

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
