"""Reads DICOM segmentations (SEG) with highdicom: binary, fractional and label maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import highdicom
import numpy as np
import pydicom
from etils import epath
from highdicom.seg import SegmentationTypeValues

from data_pipelines.errors import DataError
from data_pipelines.readers import content, grids, structure_names
from data_pipelines.readers.dicom_geometry import LPS_TO_RAS
from data_pipelines.readers.dicom_header import (
    EXPORT,
    items,
    quiet,
    read_header,
    text,
    transfer_syntax,
    whole,
)
from data_pipelines.readers.dicom_pixels import PIXEL_TAGS, check_codec, check_size
from data_pipelines.volume import Volume

_HALF = 0.5
"""Lowest probability or occupancy that counts as inside, in a fractional segmentation."""


@quiet()
def segment_names(path: epath.Path) -> list[str]:
    """Returns the labels of a file's segments.

    They are free text: use them only for comparisons and never print them.
    """
    return [text(segment, "SegmentLabel") for segment in _segments(path)]


@quiet()
def read_seg(path: epath.Path, like: Volume, wanted: Sequence[str]) -> np.ndarray:
    """Reads segments on the grid of an image in the same frame of reference.

    A segmentation may cover only a part of the image and omit empty slices, but its voxels must
    coincide with voxels of the image.

    Args:
      path: the file.
      like: the image, with an affine.
      wanted: labels of segments.

    Returns:
      (D, H, W) uint8: i + 1 inside the i-th segment of `wanted`; later segments overwrite earlier
      ones.

    Raises:
      DataError: the file is damaged, lacks such segments, is empty, or is on another grid.
    """
    numbers = [whole(path, segment, "SegmentNumber") for segment in _segments(path)]
    chosen = [numbers[i] for i in structure_names.places(path, segment_names(path), wanted)]
    segmentation = _open(path)
    structure_names.check_frame(path, text(segmentation, "FrameOfReferenceUID"), like)
    mask = np.zeros(like.shape, np.uint8)
    for value, volume in enumerate(_volumes(path, segmentation, chosen, like), 1):
        mask[_on_grid(path, *volume, like)] = value
    if not mask.any():
        raise DataError(path, "its segments are empty", "leave out the mask of this scan")
    return mask


def _segments(path: epath.Path) -> Sequence[pydicom.Dataset]:
    return items(path, read_header(path, ("SegmentSequence",)), "SegmentSequence")


def _open(path: epath.Path) -> highdicom.seg.Segmentation:
    header = read_header(path, PIXEL_TAGS)
    check_size(path, header)
    check_codec(path, transfer_syntax(path, header))
    try:
        with content.open_file(path) as file:
            return highdicom.seg.segread(file)
    except Exception:  # highdicom raises many types of errors for an incomplete file
        raise _unreadable(path) from None


def _volumes(
    path: epath.Path, segmentation: highdicom.seg.Segmentation, numbers: Sequence[int], like: Volume
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (inside, affine) for each segment: bool on the file's grid, and the grid in LPS."""
    try:
        geometry = segmentation.get_volume_geometry()
        # A file may omit slices, so its size does not limit the size of this volume.
        if geometry is None or not _within(geometry.spatial_shape, like.shape):
            raise _other_grid(path)
        if segmentation.segmentation_type == SegmentationTypeValues.LABELMAP:
            # highdicom 0.28.2 takes numbers modulo 256 where it separates segments itself.
            labels = segmentation.get_volume(combine_segments=True)
            for number in numbers:
                yield labels.array == number, labels.affine
            return
        for number in numbers:
            volume = segmentation.get_volume(segment_numbers=[number])
            yield volume.array[..., 0] >= _HALF, volume.affine
    except DataError:
        raise
    except Exception:
        raise _unreadable(path) from None


def _on_grid(path: epath.Path, inside: np.ndarray, affine: np.ndarray, like: Volume) -> np.ndarray:
    """Returns a segment on the image's grid, (D, H, W) bool."""
    assert like.affine is not None
    turned = grids.turn(inside, LPS_TO_RAS @ affine, like.affine)
    first, last = turned.offset, turned.offset + turned.labels.shape
    if turned.apart > grids.TOLERANCE or (first < 0).any() or (last > like.shape).any():
        raise _other_grid(path)
    whole_grid = np.zeros(like.shape, bool)
    whole_grid[tuple(map(slice, first, last))] = turned.labels
    return whole_grid


def _within(shape: Sequence[int], other: Sequence[int]) -> bool:
    return all(n <= m for n, m in zip(sorted(shape), sorted(other), strict=True))


def _other_grid(path: epath.Path) -> DataError:
    return DataError(
        path,
        "the segmentation is not on the image's grid, or reaches beyond it",
        "give the scan that was segmented, with all of its slices",
    )


def _unreadable(path: epath.Path) -> DataError:
    return DataError(path, "not a readable DICOM segmentation", EXPORT)
