"""Readers: `read(path)` turns a NIfTI file, a DICOM folder or one of its files into a Volume."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers import content, dicom, nifti
from data_pipelines.readers.dicom import find_series, read_dicom_series
from data_pipelines.readers.nifti import read_mask, read_nifti
from data_pipelines.volume import Units, Volume

__all__ = ["find_series", "read", "read_dicom_series", "read_mask", "read_nifti"]


def read(
    path: epath.PathLike,
    mask: epath.PathLike | None = None,
    *,
    units: Units | None = None,
    series: str | None = None,
    mask_names: Mapping[int, str] | None = None,
    patient_id: str = "",
    study_id: str = "",
) -> Volume:
    """Reads an image, recognised by its content rather than its name.

    Args:
      path: a NIfTI file (.nii, also gzipped under any name), a folder with DICOM files, or one
        DICOM file, which stands for its whole series.
      mask: a NIfTI label map on the same grid.
      units: what the numbers are. None: what the file says, which is "HU" for a DICOM CT and
        "raw" for everything else, as NIfTI cannot say.
      series: SeriesInstanceUID, needed when the DICOM folder holds several series.
      mask_names: label value -> name.
      patient_id: to store with the volume; nothing is taken from the file's tags.
      study_id: as `patient_id`.

    Raises:
      DataError: nothing there, an unknown format, or a file that cannot be trusted.
    """
    path = epath.Path(path)
    if path.is_dir() or content.file_format(path) == "dicom":
        volume = dicom.read_dicom(path, series=series, units=units)
    elif content.file_format(path) == "nifti":
        volume = nifti.read_nifti(path, units=units or "raw")
    else:
        raise DataError(
            path,
            "neither NIfTI nor DICOM",
            "give a .nii or .nii.gz file, or a folder with the DICOM files of a series",
        )
    labels = None if mask is None else read_mask(mask, like=volume)
    return dataclasses.replace(
        volume,
        mask=labels,
        mask_names=dict(mask_names or {}),
        patient_id=patient_id,
        study_id=study_id,
    )
