"""`read_image`: the one place that recognises a format, by content, and calls its reader."""

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
    """Reads an image, recognised by its content rather than its name.

    NIfTI (also gzipped under any name), NRRD, MetaImage, npy and npz files; a DICOM file, which
    stands for its series; a folder with DICOM files, or with PNG or JPEG slices.

    Args:
      path: the file or folder.
      units: what the numbers are. None: "HU" for a DICOM CT, else "raw", as no other format says.
      series: which series of a DICOM folder, if it holds several; as `dicom.read_dicom`.
      rescale: slope and intercept, applied once to the stored numbers in place of the file's own,
        for when a metadata table knows better than the header.
      spacing: mm along the array's axes in place of the file's own. The centre of the first voxel
        stays where it is.

    Raises:
      DataError: nothing there, an unknown format, or a file that cannot be trusted.
    """
    path = epath.Path(path)
    _check_numbers(path, rescale, spacing)
    kind = _folder_kind(path) if path.is_dir() else content.file_format(path)
    if kind == "dicom":
        if rescale or spacing:
            raise DataError(
                path,
                "a rescale or spacing from outside, for DICOM, which states both itself",
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
        "give the folder that holds the files of one series, or one volume file",
    )


def _is_dicom(path: epath.Path) -> bool:
    # The first bytes alone: an empty or damaged neighbour must not stop the search.
    with content.open_file(path) as file:
        return file.read(132).endswith(b"DICM")


def _not_an_image(path: epath.Path, kind: str) -> DataError:
    if kind in ("png", "jpeg"):
        problem, cure = "one slice is no volume", "give the folder with all slices of the series"
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
