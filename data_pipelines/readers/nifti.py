"""Reads NIfTI-1 and NIfTI-2 files with nibabel. Every ambiguity in a header is an error."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers import content, values
from data_pipelines.volume import Units, Volume, corners, transform

_SILENT = logging.Logger("nibabel", logging.CRITICAL + 1)
"""A silent logger, because nibabel's messages about repairs quote the contents of fields."""
_EXPORT = "export or convert the scan again (for example with dcm2niix)"


def read_nifti(
    path: epath.PathLike, *, units: Units = "raw", rescale: tuple[float, float] | None = None
) -> Volume:
    """Reads a single-file NIfTI in the file's axis order (i, j, k).

    Slope and intercept are applied once. Without them, integers keep their dtype. Integers that are
    only shifted become int16 or int32 if they fit; all other values become float32. Extensions, and
    bytes after the image, are ignored.

    Args:
      path: the .nii file, or a gzipped file of any name.
      units: units of the values; NIfTI has no field for them.
      rescale: slope and intercept for the stored numbers, instead of the header's.

    Raises:
      DataError: the file is not one readable, finite 3D image with an affine.
    """
    header = _header(path)
    stored = _stored(path, header)
    array = values.rescaled(stored, *(rescale or _own_rescale(path, header)))
    values.check_finite(path, array)
    return Volume(array=array, units=units, affine=_affine(path, header), source=str(path))


def extensions(path: epath.PathLike, longest: int) -> bytes:
    """Returns the bytes between header and voxels, where extensions are; at most `longest`."""
    header = _header(path)
    start, end = int(header.sizeof_hdr), int(header.get_data_offset())
    return content.head(path, min(end, longest))[start:]


def contradictions(path: epath.PathLike) -> list[str]:
    """Returns sentences about fields of a header that place the voxels differently.

    Each says what this reader takes, and what SimpleITK 2.5.7 takes.
    """
    header = _header(path)
    form = "sform" if header["sform_code"] > 0 else "qform"
    affine, sizes = _affine(path, header), np.array(header.get_zooms()[:3], np.float64)
    found = []
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        ends = corners(tuple(int(length) for length in header["dim"][1:4]))
        apart = transform(header.get_sform(), ends) - transform(header.get_qform(), ends)
        distance = float(np.linalg.norm(apart, axis=1).max())
        if distance > 0.5 * sizes.min():
            theirs = "sform" if header["sform_code"] == 1 else "qform"
            found.append(
                f"qform and sform place voxels up to {distance:.3g} mm apart. The sform is taken; "
                f"SimpleITK takes the {theirs}."
            )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(lengths, sizes, rtol=0.01):
        found.append(
            f"pixdim says {_sizes(sizes)}, the {form} {_sizes(lengths)}. The {form} is taken; "
            "SimpleITK takes pixdim."
        )
    return found


def _sizes(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths) + " mm"


def _header(path: epath.PathLike) -> nib.Nifti1Header:
    start = content.head(path, nib.Nifti2Header.sizeof_hdr)
    if start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0":
        raise DataError(
            path,
            "the header of a pair of files (.hdr and .img)",
            "convert the pair to one .nii file (nibabel: nib.save(nib.load('a.hdr'), 'a.nii'))",
        )
    kind = nib.Nifti2Header if start[4:8] == b"n+2\0" else nib.Nifti1Header
    if len(start) < kind.sizeof_hdr:
        raise DataError(path, "the file ends inside its header", "copy or download it again")
    # nibabel repairs headers silently, so `_check` looks at the header before any repair.
    header = kind(start[: kind.sizeof_hdr], check=False)
    _check(path, header)
    try:
        header.check_fix(logger=_SILENT)
    except nib.spatialimages.HeaderDataError as error:
        raise DataError(path, "not a readable NIfTI header", _EXPORT) from error
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        raise DataError(
            path,
            "neither qform nor sform is set, so left and right cannot be told apart",
            "set one of them from the original scan (nibabel: image.set_sform(affine, code=1))",
        )
    return header


def _check(path: epath.PathLike, header: nib.Nifti1Header) -> None:
    if header["sizeof_hdr"] != header.sizeof_hdr:
        raise DataError(path, f"a header of {header['sizeof_hdr']} bytes", _EXPORT)
    axes = int(header["dim"][0])
    # The axes after the third, such as a single time point, may have length one.
    if not 3 <= axes <= 7 or (header["dim"][4 : axes + 1] != 1).any():
        shape = header["dim"][1 : 1 + max(0, min(axes, 7))].tolist()
        raise DataError(
            path, f"the image has shape {shape}, not three axes", "save one 3D image per file"
        )
    zooms = header["pixdim"][1:4]
    if not np.isfinite(zooms).all() or zooms.min() <= 0:
        raise DataError(path, f"voxel sizes of {zooms.tolist()} mm", _EXPORT)
    if int(header["xyzt_units"]) & 7 in (1, 3):  # metres, micrometres
        raise DataError(path, "the affine is not in millimetres", "convert it to millimetres")
    offset = float(header["vox_offset"])
    if not (offset.is_integer() and offset >= header.single_vox_offset):  # also catches NaN
        raise DataError(path, f"voxels from byte {offset:g} on, not after the header", _EXPORT)


def _stored(path: epath.PathLike, header: nib.Nifti1Header) -> np.ndarray:
    """Returns the stored numbers (i, j, k), before slope and intercept."""
    try:
        dtype = header.get_data_dtype()
    except nib.spatialimages.HeaderDataError as error:
        raise DataError(path, "voxels of an unknown type", _EXPORT) from error
    shape = [int(length) for length in header["dim"][1:4]]
    data = content.read_exactly(
        path,
        values.count_bytes(path, shape, dtype),
        skip=header.get_data_offset(),
        packed=content.is_gzipped(path),
    )
    return values.as_array(data, dtype, shape, order="F")


def _own_rescale(path: epath.PathLike, header: nib.Nifti1Header) -> tuple[float, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except nib.spatialimages.HeaderDataError as error:
        raise DataError(path, "an intercept (scl_inter) that is not a number", _EXPORT) from error
    return (1.0, 0.0) if slope is None else (slope, intercept)


def _affine(path: epath.PathLike, header: nib.Nifti1Header) -> np.ndarray:
    try:
        affine = header.get_best_affine()
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise DataError(path, "a qform that is not a rotation", _EXPORT) from error
    values.check_lengths(path, affine)
    return affine
