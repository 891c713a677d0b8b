"""NIfTI-1 and NIfTI-2 files through nibabel, with every doubt turned into an error."""

from __future__ import annotations

import io
from typing import Any

import nibabel as nib
import numpy as np
from etils import epath
from nibabel import orientations

from data_pipelines.errors import DataError
from data_pipelines.readers import content
from data_pipelines.volume import NOT_LABELLED, Units, Volume, check_affine, corners, transform

_GRID_TOLERANCE = 0.1
"""Voxels that the corners of mask and image may be apart: header fields are rounded."""
_EXPORT = "export or convert the scan again (for example with dcm2niix)"


def read_nifti(path: epath.PathLike, *, units: Units = "raw") -> Volume:
    """Reads a single-file NIfTI in its own axis order (i, j, k).

    Slope and intercept are applied once. Without them integers stay integers; everything else
    becomes float32.

    Args:
      path: .nii, or gzipped under any name.
      units: of the values; NIfTI has no field for it.

    Raises:
      DataError: not one readable, finite 3D image with a place in the patient.
    """
    image = _load(path)
    array, affine = _array(path, image), _affine(path, image)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            path,
            f"{np.count_nonzero(~np.isfinite(array))} voxels are NaN or infinite",
            "find out what they stand for and replace them, for CT usually with -1024",
        )
    return Volume(array=array, units=units, affine=affine, source=str(path))


def read_mask(path: epath.PathLike, like: Volume) -> np.ndarray:
    """Reads a label map that lies on the grid of `like`, whichever order its axes are stored in.

    Args:
      path: NIfTI.
      like: the image, as read.

    Returns:
      (D, H, W) uint8 along the image's axes.

    Raises:
      DataError: the mask is on another grid, or its labels are not integers 0..254.
    """
    image = _load(path)
    labels = _labels(path, _array(path, image))
    if like.affine is None:
        same, grid = labels.shape == like.shape, f"shape {like.shape}"
    else:
        to_image = np.linalg.inv(like.affine) @ _affine(path, image)
        change = orientations.io_orientation(to_image)
        to_image = to_image @ orientations.inv_ornt_aff(change, labels.shape)
        labels = orientations.apply_orientation(labels, change)
        here = corners(labels.shape)
        apart = np.abs(transform(to_image, here) - here).max()
        same = labels.shape == like.shape and apart < _GRID_TOLERANCE
        grid = f"shape {like.shape}, {apart:.3g} voxels apart at the corners"
    if not same:
        raise DataError(
            path,
            f"the mask is on another grid than the image: shape {labels.shape} against {grid}",
            "resample the mask onto the image with nearest neighbour, or give the image it "
            "was drawn on",
        )
    return np.ascontiguousarray(labels)


def _load(path: epath.PathLike) -> Any:
    data = content.read_bytes(path)
    kind = nib.Nifti2Image if data[4:8] == b"n+2\0" else nib.Nifti1Image
    try:
        # nibabel repairs headers in silence; these fields decide where the image is.
        header = kind.header_class.from_fileobj(io.BytesIO(data), check=False)
        _check_header(path, header)
        return kind.from_bytes(data)
    except (nib.spatialimages.HeaderDataError, nib.filebasedimages.ImageFileError) as error:
        raise DataError(path, f"not a readable NIfTI file: {error}", _EXPORT) from error


def _check_header(path: epath.PathLike, header: nib.Nifti1Header) -> None:
    zooms = header["pixdim"][1:4]
    if not np.isfinite(zooms).all() or zooms.min() <= 0:
        raise DataError(path, f"voxel sizes of {zooms.tolist()} mm", _EXPORT)
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        raise DataError(
            path,
            "neither qform nor sform is set, so left and right cannot be told apart",
            "set one of them from the original scan (nibabel: image.set_sform(affine, code=1))",
        )
    if int(header["xyzt_units"]) & 7 in (1, 3):  # metres, micrometres
        raise DataError(path, "the affine is not in millimetres", "convert it to millimetres")


def _array(path: epath.PathLike, image: Any) -> np.ndarray:
    shape, dtype = image.shape, image.get_data_dtype()
    if len(shape) != 3 and not (len(shape) > 3 and set(shape[3:]) == {1}):
        raise DataError(
            path, f"the image has shape {shape}, not three axes", "save one 3D image per file"
        )
    if dtype.kind not in "iuf":
        raise DataError(path, f"voxels of type {dtype}", "save a grey-value or label image")
    # nibabel blanks the slope in the header it keeps; the array proxy has it.
    plain = (image.dataobj.slope, image.dataobj.inter) == (1, 0) and dtype.kind in "iu"
    try:
        if plain:
            array = image.dataobj.get_unscaled()
        else:
            array = image.get_fdata(dtype=np.float32, caching="unchanged")
    except (OSError, ValueError) as error:
        problem = "the file ends before the image does"
        raise DataError(path, problem, "copy or download it again") from error
    native = array.dtype.newbyteorder("=")
    return np.asarray(array, native).reshape(shape[:3], order="F")


def _affine(path: epath.PathLike, image: Any) -> np.ndarray:
    return check_affine(image.affine, path)


def _labels(path: epath.PathLike, array: np.ndarray) -> np.ndarray:
    low, high = array.min(), array.max()
    if not (low >= 0 and high < NOT_LABELLED):  # also catches NaN
        problem = f"labels from {low} to {high}"
    elif array.dtype.kind == "f" and (array != np.floor(array)).any():
        problem = "labels that are not whole numbers, as if a mask had been interpolated"
    else:
        return array.astype(np.uint8)
    raise DataError(path, problem, f"use whole numbers from 0 to {NOT_LABELLED - 1}")
