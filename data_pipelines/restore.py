"""Maps masks, boxes and points from a preprocessed grid back to the file's grid and to mm.

A whole recipe amounts to one affine map (`Volume.to_source`): an axis permutation with flips and
one map per axis, and a shear if the file's grid is sheared. Its inverse is therefore a single
resampling, not one for each step.
"""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
from etils import epath

from data_pipelines import resample, shear
from data_pipelines.errors import DataError
from data_pipelines.volume import Volume, corners, transform


def put_back(array: np.ndarray, volume: Volume, *, order: int = 0, fill: float = 0) -> np.ndarray:
    """Resamples an array from the volume's grid to the grid of the volume's file.

    Args:
      array: (D, H, W) on the volume's grid, such as a predicted mask or a probability.
      volume: the preprocessed volume.
      order: 0 nearest neighbour (labels), 1 linear (probabilities, images; float32).
      fill: value at voxels of the file that are outside the volume, for example after a crop.

    Returns:
      Array of shape `volume.source_shape`, in the file's axis order.

    Raises:
      ValueError: the array is on another grid, or the order is neither 0 nor 1.
    """
    if array.shape != volume.shape:
        raise ValueError(f"an array of {array.shape} is not on the volume's grid {volume.shape}")
    if order not in (0, 1):
        raise ValueError(f"order {order}: use 0 (nearest) or 1 (linear)")
    assert volume.source_shape is not None
    from_source = np.linalg.inv(volume.to_source)
    if np.count_nonzero(np.abs(from_source[:3, :3]) > 1e-6) > 3:  # the file's grid is sheared
        turned = array.astype(np.float32) if order else array
        return shear.resample(turned, from_source, volume.source_shape, order=order, fill=fill)
    # Source axis s runs along axis ours[s] of the volume: the one entry of column s.
    ours = np.abs(from_source[:3, :3]).argmax(0)
    sample = resample.linear if order else resample.nearest
    return sample(
        array.transpose(ours),
        volume.source_shape,
        from_source[ours, 3],
        from_source[ours, range(3)],
        fill=fill,
    )


def boxes_to_source(boxes: np.ndarray, volume: Volume) -> np.ndarray:
    """Transforms boxes from the volume's grid to the file's grid.

    Args:
      boxes: (N, 6) min d, h, w, max d, h, w in voxels, half-open: max is one past the last voxel.
      volume: the preprocessed volume.

    Returns:
      (N, 6) float64 in the same convention, along the file's axes; not rounded. On a sheared grid
      it is the smallest box around the given one.
    """
    return _moved(boxes, volume.to_source)


def boxes_from_source(boxes: np.ndarray, volume: Volume) -> np.ndarray:
    """Transforms boxes from the file's grid to the volume's grid; see `boxes_to_source`."""
    return _moved(boxes, np.linalg.inv(volume.to_source))


def _moved(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    moved = transform(matrix, _corners(boxes)) + 0.5
    return np.concatenate([moved.min(1), moved.max(1)], axis=1)


def boxes_to_world(boxes: np.ndarray, volume: Volume) -> np.ndarray:
    """Returns the eight corners (N, 8, 3) of half-open voxel boxes (N, 6), in RAS+ mm.

    Corners are needed because a box on an oblique scan is not parallel to the patient's axes.
    """
    return points_to_world(_corners(boxes), volume)


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Returns the corners (N, 8, 3) of half-open boxes (N, 6), as positions of voxel centres."""
    # Half-open bounds are faces of voxels. An affine maps centres, which are half a voxel further.
    faces = np.asarray(boxes, np.float64).reshape(-1, 2, 3) - 0.5
    return faces[:, corners((2, 2, 2)), range(3)]


def points_to_world(points: np.ndarray, volume: Volume) -> np.ndarray:
    """Transforms voxel centres (..., 3) as d, h, w to RAS+ mm (..., 3), float64.

    Raises:
      DataError: the volume has no affine.
    """
    return transform(_affine(volume, volume.affine), points)


def save_like(array: np.ndarray, path: epath.PathLike, volume: Volume) -> None:
    """Saves an array on the file's grid (see `put_back`) as NIfTI with the file's affine.

    Args:
      array: array of shape `volume.source_shape`; float64, int64 and bool are saved as float32,
        int32 and uint8, which every viewer can read.
      path: path that ends in .nii or .nii.gz.
      volume: volume that was read from the file, preprocessed or not.

    Raises:
      DataError: the file had no affine.
      ValueError: the array is on another grid, or the name is not a NIfTI name.
    """
    path = epath.Path(path)
    if array.shape != volume.source_shape:
        raise ValueError(
            f"an array of {array.shape} is not on the file's grid {volume.source_shape}: put_back()"
        )
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path.name}: name it .nii or .nii.gz")
    narrow = {"float64": "float32", "int64": "int32", "bool": "uint8"}
    array = array.astype(narrow.get(array.dtype.name, array.dtype), copy=False)
    data = nib.Nifti1Image(array, _affine(volume, volume.source_affine)).to_bytes()
    path.write_bytes(gzip.compress(data, 1) if path.name.endswith(".gz") else data)


def _affine(volume: Volume, affine: np.ndarray | None) -> np.ndarray:
    if affine is None:
        raise DataError(
            volume.source,
            "the file does not state where its voxels are in the patient",
            "give an affine when reading, or use voxel coordinates",
        )
    return affine
