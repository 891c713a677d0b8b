"""Small volumes and measures for the tests of the data side."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

from data_pipelines.volume import Volume, transform


def oblique(volume: Volume, degrees: tuple[float, float, float] = (11.0, -7.0, 5.0)) -> Volume:
    """The same voxels, lying rotated in the patient as in a tilted acquisition."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return dataclasses.replace(volume, affine=turn @ affine_of(volume), source_affine=None)


def mask_of(volume: Volume) -> np.ndarray:
    """The mask, which the test knows to be there."""
    assert volume.mask is not None
    return volume.mask


def affine_of(volume: Volume) -> np.ndarray:
    """The affine, which the test knows to be there."""
    assert volume.affine is not None
    return volume.affine


def random_volume(
    shape: tuple[int, int, int], affine: np.ndarray | None = None, seed: int = 0
) -> Volume:
    """Noise in HU with a blocky label map."""
    rng = np.random.default_rng(seed)
    array = rng.integers(-1024, 2000, shape, np.int16)
    mask = (rng.random(shape) > 0.7).astype(np.uint8) * rng.integers(1, 4, shape, np.uint8)
    return Volume(array, "HU", affine=np.eye(4) if affine is None else affine, mask=mask)


def only_label(volume: Volume, label: int) -> Volume:
    """The volume with a binary mask of one label."""
    return dataclasses.replace(volume, mask=(mask_of(volume) == label).astype(np.uint8))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two binary masks, 0..1."""
    one, other = one > 0, other > 0
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def centroid_mm(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of mass of a binary mask in RAS mm."""
    return transform(affine, np.argwhere(mask).mean(0))


def bounding_box(mask: np.ndarray) -> np.ndarray:
    """Half-open (1, 6) voxel box of a binary mask."""
    voxels = np.argwhere(mask)
    return np.concatenate([voxels.min(0), voxels.max(0) + 1])[None]
