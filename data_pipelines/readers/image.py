"""`read_image`: recognises the format of an image by its content, and calls the format's reader."""

from __future__ import annotations

import dataclasses

import numpy as np
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.files import below
from data_pipelines.readers import arrays, content, dicom, metaimage, nifti, nrrd, slices, values
from data_pipelines.volume import Units, Volume

_READERS = {
    "nrrd": nrrd.read_nrrd,
    "metaimage": metaimage.read_metaimage,
    "npy": arrays.read_npy,
    "npz": arrays.read_npz,
}


def read_image(
    path: epath.PathLike,
    *,
    units: Units | None = None,
    series: str | None = None,
    rescale: tuple[float, float] | None = None,
    spacing: tuple[float, float, float] | None = None,
) -> Volume:
    """Reads an image; its format is recognised by the content, not by the name.

    Formats are NIfTI (also gzipped under any name), NRRD, MetaImage, npy and npz files; a DICOM
    file, which is read with its whole series; a folder of DICOM files, or of PNG or JPEG slices.

    Args:
      path: the file or folder.
      units: units of the values. None means "HU" for a DICOM CT and "raw" for all others, because
        no other format states its units.
      series: selects one of several series in a DICOM folder; see `dicom.read_dicom`.
      rescale: slope and intercept, applied once to the stored numbers instead of the file's own.
        For files with a metadata table that is more reliable than the header.
      spacing: mm along the array's axes instead of the file's own. The centre of the first voxel
        keeps its position.

    Raises:
      DataError: the path does not exist, or its format is unknown or its content unreliable.
    """
    path = epath.Path(path)
    _check_numbers(path, rescale, spacing)
    kind = _folder_kind(path) if path.is_dir() else content.file_format(path)
    if kind == "dicom":
        if rescale or spacing:
            raise DataError(
                path,
                "a rescale or spacing was given, but DICOM files state both themselves",
                "leave them out",
            )
        return dicom.read_dicom(path, series=series, units=units)
    volume = _read(path, kind, units or "raw", rescale)
    return volume if spacing is None else _respaced(volume, spacing)


def _read(path: epath.Path, kind: str, units: Units, rescale: tuple[float, float] | None) -> Volume:
    if kind == "nifti":
        return nifti.read_nifti(path, units=units, rescale=rescale)
    if kind == "slices":
        volume = slices.read_slices(path, slices.find_slices(path), units=units)
    elif kind in _READERS:
        volume = _READERS[kind](path, units=units)
    else:
        raise _not_an_image(path, kind)
    if rescale is None:
        return volume
    array = values.rescaled(volume.array, *rescale)
    values.check_finite(path, array)
    return dataclasses.replace(volume, array=array)


def _folder_kind(folder: epath.Path) -> str:
    if any(_is_dicom(path) for path in below(folder) if path.is_file()):
        return "dicom"
    if slices.find_slices(folder):
        return "slices"
    raise DataError(
        folder,
        "no DICOM images and no PNG or JPEG slices in it",
        "give the folder with the files of one series, or one volume file",
    )


def _is_dicom(path: epath.Path) -> bool:
    # Reads only the first bytes: an empty or damaged file must not stop the search.
    with content.open_file(path) as file:
        return file.read(132).endswith(b"DICM")


def _not_an_image(path: epath.Path, kind: str) -> DataError:
    if kind in ("png", "jpeg"):
        problem, cure = "one slice is not a volume", "give the folder with all slices of the series"
    else:
        problem = "not an image in a format that can be read"
        cure = (
            "give NIfTI, NRRD, MetaImage, npy or npz, a folder with the DICOM files of a series, "
            "or a folder with PNG or JPEG slices"
        )
    return DataError(path, problem, cure)


def _check_numbers(
    path: epath.Path,
    rescale: tuple[float, float] | None,
    spacing: tuple[float, float, float] | None,
) -> None:
    if rescale is not None and not (
        len(rescale) == 2 and np.isfinite(rescale).all() and rescale[0] != 0
    ):
        raise DataError(path, f"a rescale of {rescale}", "give a slope and an intercept")
    if spacing is not None and not (
        len(spacing) == 3 and np.isfinite(spacing).all() and min(spacing) > 0
    ):
        raise DataError(path, f"a spacing of {spacing} mm", "give three positive numbers")


def _respaced(volume: Volume, spacing: tuple[float, float, float]) -> Volume:
    if volume.affine is None:
        return dataclasses.replace(volume, spacing=spacing)
    affine = volume.affine.copy()
    affine[:3, :3] *= np.array(spacing) / volume.spacing
    return dataclasses.replace(volume, affine=affine, spacing=None, source_affine=None)
