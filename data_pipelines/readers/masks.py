"""Reads masks in all supported forms, on the grid of their image."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pydicom
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.readers import content, grids, label_names, structure_names
from data_pipelines.readers.dicom import LABEL_MAP_SEGMENTATION
from data_pipelines.readers.dicom_header import quiet, read_header, text
from data_pipelines.readers.dicom_seg import read_seg, segment_names
from data_pipelines.readers.image import read_image
from data_pipelines.readers.rtstruct import drawn_names, read_rtstruct
from data_pipelines.volume import NOT_LABELLED, Volume

_SEG = {str(pydicom.uid.SegmentationStorage), LABEL_MAP_SEGMENTATION}
_ORGANS = {"nifti", "nrrd", "metaimage", "npy", "npz"}
_ENDINGS = {".gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".npy", ".npz"}


def read_mask(path: epath.PathLike, like: Volume, structures: Sequence[str] = ()) -> np.ndarray:
    """Reads a mask on the grid of the image `like`; its axes may be stored in any order.

    Args:
      path: a label map in any format that `read_image` knows; a folder with
        one binary file per structure; a DICOM SEG or RTSTRUCT file, or a folder with such a file as
        its only DICOM file. A folder may be inside folders that hold nothing else.
      like: the image, as read.
      structures: names of the structures to read from a folder, SEG, RTSTRUCT or a label map that
        names its values, regardless of case. The i-th structure gets the value i + 1 and overwrites
        earlier ones. () reads all files of a folder, ordered by name. Without names the values of a
        label map are kept.

    Returns:
      (D, H, W) uint8 along the image's axes.

    Raises:
      DataError: the mask is on another grid, its labels are not integers 0..254, a structure is
        missing, or a folder holds no mask.
    """
    found = find_mask(path)
    if found.form == "labels":
        labels = _label_map(found.path, like)
        return _chosen(found, labels, structures) if structures and found.values else labels
    if found.form == "organs":
        return _merged(found.path, like, structures)
    if like.affine is None:
        cure = "read the image from its DICOM or NIfTI files"
        raise DataError(found.path, "a mask in patient space, for an image without an affine", cure)
    return (read_seg if found.form == "seg" else read_rtstruct)(found.path, like, structures)


def structures_in(path: epath.PathLike, wanted: Sequence[str]) -> tuple[str, ...]:
    """Returns the wanted structures that are in a mask, with names as given.

    Raises:
      DataError: the mask is damaged, or is a label map that does not name its values.
    """
    found = find_mask(path)
    if found.form == "labels" and not found.values:
        cure = "name its values instead"
        raise DataError(found.path, "a label map has no names of structures", cure)
    return structure_names.held(found.names, wanted)


def organ_files(folder: epath.PathLike) -> dict[str, epath.Path]:
    """Returns {file name without extension: mask file} of a folder, in alphabetical order.

    Raises:
      DataError: two files have the same name, or a file is empty or damaged.
    """
    found: dict[str, epath.Path] = {}
    for path in sorted(epath.Path(folder).iterdir()):
        if path.is_dir() or path.name.startswith("."):
            continue
        if content.file_format(path) in _ORGANS:
            name = _name(path)
            if name in found:
                raise DataError(path, f"a second mask of {name!r}", "keep only one of the files")
            found[name] = path
    return found


def _name(path: epath.Path) -> str:
    while path.suffix.lower() in _ENDINGS:
        path = path.with_suffix("")
    return path.name


@dataclasses.dataclass(frozen=True)
class MaskFile:
    """Where a mask is stored, and how.

    Attributes:
      form: "organs" (a folder with one file per structure), "seg", "rtstruct" or "labels" (a label
        map).
      path: the file or folder that holds it.
    """

    form: Literal["organs", "seg", "rtstruct", "labels"]
    path: epath.Path

    @functools.cached_property
    def values(self) -> Mapping[int, str]:
        """Returns {value: name} of a label map that names its values; see `label_names`."""
        return label_names.names_of_values(self.path) if self.form == "labels" else {}

    @property
    def names(self) -> list[str]:
        """Returns the names of its structures; [] for a label map without names."""
        if self.form == "labels":
            return list(self.values.values())
        names = {"organs": organ_files, "seg": segment_names, "rtstruct": drawn_names}[self.form]
        return list(names(self.path))


@quiet()
def find_mask(path: epath.PathLike) -> MaskFile:
    """Finds the mask that a path names, and its form.

    Raises:
      DataError: the path does not exist, a folder holds no mask, or a file is empty or damaged.
    """
    path = epath.Path(path)
    if path.is_dir():
        path, files = _inner(path)
        if organ_files(path):
            return MaskFile("organs", path)
        filled = [file for file in files if file.stat().length]
        dicom = [file for file in filled if content.file_format(file) == "dicom"]
        if len(dicom) != 1:
            return MaskFile("labels", path)
        (path,) = dicom
    if content.file_format(path) != "dicom":
        return MaskFile("labels", path)
    kind = text(read_header(path, ()).file_meta, "MediaStorageSOPClassUID")
    if kind == pydicom.uid.RTStructureSetStorage:
        return MaskFile("rtstruct", path)
    return MaskFile("seg" if kind in _SEG else "labels", path)


def _inner(folder: epath.Path) -> tuple[epath.Path, list[epath.Path]]:
    """Returns the first folder on the way down that holds files, and these files."""
    children = [path for path in folder.iterdir() if not path.name.startswith(".")]
    files = [path for path in children if not path.is_dir()]
    if not files and len(children) == 1 and children[0].is_dir():
        return _inner(children[0])
    if not files:
        problem = "a folder without files, where a mask should be"
        raise DataError(folder, problem, "give the file of the mask, or the folder that holds it")
    return folder, files


def _merged(folder: epath.Path, like: Volume, wanted: Sequence[str]) -> np.ndarray:
    files = organ_files(folder)
    if wanted:
        paths = [
            list(files.values())[i] for i in structure_names.places(folder, list(files), wanted)
        ]
    else:
        paths = list(files.values())
        structure_names.check_count(folder, paths)
    merged = np.zeros(like.shape, np.uint8)
    for value, path in enumerate(paths, 1):
        merged[_label_map(path, like) > 0] = value
    return merged


def _chosen(found: MaskFile, labels: np.ndarray, wanted: Sequence[str]) -> np.ndarray:
    """Returns a label map in which the wanted structures have the values 1, 2, ..."""
    places = structure_names.places(found.path, found.names, wanted)
    table = np.zeros(max(NOT_LABELLED, *found.values) + 1, np.uint8)
    table[[list(found.values)[place] for place in places]] = np.arange(1, len(places) + 1)
    return table[labels]


def _label_map(path: epath.Path, like: Volume) -> np.ndarray:
    image = read_image(path)
    labels = _labels(path, image.array)
    if labels.size == 1 and not labels.any() and image.affine is None:
        return np.zeros(like.shape, np.uint8)  # M3D-Seg's form of an empty mask
    if like.affine is None or image.affine is None:
        same, grid = labels.shape == like.shape, f"shape {like.shape}"
    else:
        turned = grids.turn(labels, image.affine, like.affine)
        labels = turned.labels
        apart = turned.apart + np.abs(turned.offset).max()
        same = labels.shape == like.shape and apart < grids.TOLERANCE
        grid = f"shape {like.shape}, {apart:.3g} voxels apart at the corners"
    if not same:
        raise DataError(
            path,
            f"the mask is on another grid than the image: shape {labels.shape} against {grid}",
            "resample the mask to the image with nearest neighbour, or give the image that "
            "it was drawn on",
        )
    return np.ascontiguousarray(labels)


def _labels(path: epath.Path, array: np.ndarray) -> np.ndarray:
    low, high = array.min(), array.max()
    if not (low >= 0 and high < NOT_LABELLED):
        problem = f"labels from {low} to {high}"
    elif array.dtype.kind == "f" and (array != np.floor(array)).any():
        problem = "labels that are not whole numbers, as if a mask had been interpolated"
    else:
        return array.astype(np.uint8)
    raise DataError(path, problem, f"use whole numbers from 0 to {NOT_LABELLED - 1}")
