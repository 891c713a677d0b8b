"""Geometric steps of preprocessing, with MONAI's names and parameters.

Each step is an axis permutation or a map `old index = start + step * new index` per axis. It is
applied to the image (linear) and the mask (nearest), and composed into `Volume.to_source`. All
sizes and spacings are in the order (D, H, W).

nibabel takes half a second to import and a config does not need it, so it is imported where axes
are permuted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from data_pipelines import resample
from data_pipelines.errors import DataError
from data_pipelines.shear import straighten
from data_pipelines.volume import Volume

Size = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Orientation:
    """A step that permutes and flips the axes so that they run towards `axcodes`.

    Voxels keep their values, except on a sheared grid, which is made rectangular first; see
    `shear.straighten`.

    Attributes:
      axcodes: directions of D, H and W. "SPL" is Superior, Posterior, Left: slices run upwards,
        rows to the back and columns to the patient's left, as in the usual view of an axial slice.
    """

    axcodes: str = "SPL"

    def __call__(self, volume: Volume) -> Volume:
        """Returns the reoriented volume.

        Raises:
          DataError: the volume has no affine.
        """
        if volume.affine is None:
            raise DataError(
                volume.source,
                "the file does not state the orientation of the image in the patient",
                "give a file that states it, such as NIfTI (in Python: an affine), or use a recipe "
                "without Orientation",
            )
        from nibabel import orientations

        volume = straighten(volume)
        now = orientations.io_orientation(volume.affine)
        change = orientations.ornt_transform(now, orientations.axcodes2ornt(tuple(self.axcodes)))
        return _reorient(volume, change)


@dataclasses.dataclass(frozen=True)
class Permute:
    """A step that transposes the axes regardless of the affine, as M3D's scripts do.

    Attributes:
      axes: new axis i is old axis `axes[i]`.
    """

    axes: Size

    def __call__(self, volume: Volume) -> Volume:
        """Returns the volume with image and mask transposed."""
        change = np.ones((3, 2))
        change[list(self.axes), 0] = range(3)
        return _reorient(volume, change)


@dataclasses.dataclass(frozen=True)
class Spacing:
    """A step that resamples to exactly this spacing; the centre of the volume does not move.

    Attributes:
      pixdim: mm along D, H, W.
      anti_alias: low-pass filter axes that become coarser.
    """

    pixdim: tuple[float, float, float]
    anti_alias: bool = True

    def __call__(self, volume: Volume) -> Volume:
        """Returns the resampled volume.

        Raises:
          DataError: the volume has no spacing.
        """
        if volume.spacing is None:
            raise DataError(
                volume.source, "the voxel spacing is unknown", "give spacing=(D, H, W) in mm"
            )
        # Headers store spacings in float32: 1.5 and 1.4999999 mm mean the same grid.
        same = np.isclose(volume.spacing, self.pixdim, rtol=1e-5)
        step = np.where(same, 1.0, np.divide(self.pixdim, volume.spacing))
        old = np.array(volume.shape)
        # Rounded up, so that the new grid covers every voxel and a mask can be restored completely.
        new = np.ceil(old / step - 1e-3).astype(int)
        start = (old - 1) / 2 - step * (new - 1) / 2
        return _resample(volume, new.tolist(), start, step, self.anti_alias)


@dataclasses.dataclass(frozen=True)
class Resize:
    """A step that resamples to a fixed number of voxels.

    The field of view stays the same, the aspect ratio of a voxel does not.

    Attributes:
      spatial_size: voxels along D, H, W.
      anti_alias: low-pass filter axes that become coarser; M3D's released code does not.
      mask_mode: "half_pixel" takes the voxel nearest to the image's sampling point; "floor" is
        torch's legacy "nearest" as in M3D's released code, shifted by half a voxel.
    """

    spatial_size: Size
    anti_alias: bool = True
    mask_mode: Literal["half_pixel", "floor"] = "half_pixel"

    def __call__(self, volume: Volume) -> Volume:
        """Returns the volume with image and mask of shape `spatial_size`."""
        step = np.divide(volume.shape, self.spatial_size)
        out = _resample(volume, self.spatial_size, step / 2 - 0.5, step, self.anti_alias)
        if volume.mask is None or self.mask_mode == "half_pixel":
            return out
        mask = resample.nearest_floor(volume.mask, self.spatial_size)
        return dataclasses.replace(out, mask=mask)


@dataclasses.dataclass(frozen=True)
class CropForeground:
    """A step that crops to the bounding box of the voxels above a threshold.

    Attributes:
      threshold: foreground is `array > threshold`.
      margin: voxels to keep around the box, as far as the volume reaches.
    """

    threshold: float = 0.0
    margin: int = 0

    def __call__(self, volume: Volume) -> Volume:
        """Returns the cropped volume.

        Raises:
          DataError: no voxel is foreground.
        """
        foreground = volume.array > self.threshold
        start, stop = [], []
        for axis, others in enumerate(((1, 2), (0, 2), (0, 1))):
            inside = np.flatnonzero(foreground.any(axis=others))
            if not len(inside):
                raise DataError(
                    volume.source,
                    f"no voxel is above {self.threshold}: the image is empty or constant",
                    "leave this scan out",
                )
            start.append(max(int(inside[0]) - self.margin, 0))
            stop.append(min(int(inside[-1]) + 1 + self.margin, volume.shape[axis]))
        return crop(volume, start, stop)


@dataclasses.dataclass(frozen=True)
class ResizeWithPadOrCrop:
    """A step that crops or pads every axis around its centre to a fixed number of voxels.

    Attributes:
      spatial_size: voxels along D, H, W.
      value: value of the image in the padding; the mask is 0 there.
    """

    spatial_size: Size
    value: float = 0.0

    def __call__(self, volume: Volume) -> Volume:
        """Returns the volume with image and mask of shape `spatial_size`."""
        start = [
            _centred(old, new) for old, new in zip(volume.shape, self.spatial_size, strict=True)
        ]
        stop = [begin + new for begin, new in zip(start, self.spatial_size, strict=True)]
        return crop(volume, start, stop, self.value)


def center_crop(volume: Volume, size: Size) -> Volume:
    """Crops a volume around its centre.

    Raises:
      ValueError: the volume is smaller than the crop.
    """
    if any(new > old for new, old in zip(size, volume.shape, strict=True)):
        raise ValueError(f"a crop of {size} does not fit into a volume of {volume.shape}")
    return ResizeWithPadOrCrop(size)(volume)


def crop(volume: Volume, start: Sequence[int], stop: Sequence[int], value: float = 0.0) -> Volume:
    """Crops a volume to the voxels start..stop (exclusive) and pads outside of the volume.

    Args:
      volume: volume to crop, with its mask.
      start: (3,) first voxel; may be negative.
      stop: (3,) end, exclusive; may be outside of the volume.
      value: value of the image in the padding; the mask is 0 there.
    """

    def cut(array: np.ndarray, fill: float) -> np.ndarray:
        inner = tuple(slice(max(a, 0), b) for a, b in zip(start, stop, strict=True))
        width = [
            (max(-a, 0), max(b - n, 0)) for a, b, n in zip(start, stop, array.shape, strict=True)
        ]
        inside = array[inner]
        return _pad(inside, width, fill) if np.any(width) else inside

    shift = np.eye(4)
    shift[:3, 3] = start
    mask = None if volume.mask is None else cut(volume.mask, 0)
    return volume.regrid(cut(volume.array, value), mask, shift)


def _pad(array: np.ndarray, width: list[tuple[int, int]], fill: float) -> np.ndarray:
    # An unsigned image cannot hold -1024: widen its dtype, so that the value does not wrap around.
    needed = np.min_scalar_type(int(fill) if float(fill).is_integer() else fill)
    wide = array.astype(np.result_type(array, needed), copy=False)
    return np.pad(wide, width, constant_values=fill)


def _centred(old: int, new: int) -> int:
    """Returns the first voxel of a centred crop, negative for padding, rounded as in MONAI."""
    return old // 2 - new // 2 if new <= old else -((new - old) // 2)


def _reorient(volume: Volume, change: np.ndarray) -> Volume:
    from nibabel import orientations

    mask = volume.mask
    return volume.regrid(
        orientations.apply_orientation(volume.array, change),
        None if mask is None else orientations.apply_orientation(mask, change),
        orientations.inv_ornt_aff(change, volume.shape),
    )


def _resample(
    volume: Volume, shape: Sequence[int], start: np.ndarray, step: np.ndarray, anti_alias: bool
) -> Volume:
    to_old = np.diag([*step, 1.0])
    to_old[:3, 3] = start
    image = resample.linear(volume.array, shape, start, step, anti_alias=anti_alias)
    if volume.units == "unit":
        image = image.clip(0, 1)  # float32 weights may sum to 1 + 1e-7
    mask = None if volume.mask is None else resample.nearest(volume.mask, shape, start, step)
    return volume.regrid(image, mask, to_old)
