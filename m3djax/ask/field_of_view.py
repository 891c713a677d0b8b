"""The field of view: the part of a scan that a model sees, cut like the crops of its training."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from data_pipelines.crops import Crop
from data_pipelines.datasets.records import quantize
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.pipeline import Data
from data_pipelines.placement import Whole
from data_pipelines.preprocess import Recipe, boxes_to_source
from data_pipelines.volume import Volume, transform
from data_pipelines.windows import Window, cut

CENTRE, WHOLE = "centre", "whole"
MOST = 2**30
"""Largest number of voxels of a crop before it is resampled to the network's input: 2 GiB."""
_NUMBER = r"\s*([-+]?\d+(?:\.\d+)?)\s*"
_POINT = re.compile(rf"{_NUMBER},{_NUMBER},{_NUMBER}(mm)?")


@dataclasses.dataclass(frozen=True)
class At:
    """The place of a field of view in a scan.

    Attributes:
      point: a voxel of the file, along its own axes, or millimetres; None: the scan's centre.
      mm: whether the point is in RAS+ millimetres.
      whole: whether to use the whole scan, resampled to the size of the network's input.
    """

    point: tuple[float, float, float] | None = None
    mm: bool = False
    whole: bool = False

    @classmethod
    def read(cls, text: str) -> At:
        """Reads "centre", "whole", "30,200,180" (a voxel) or "-12,40,1310mm".

        Raises:
          ConfigError: the text is none of these.
        """
        if text in (CENTRE, WHOLE):
            return cls(whole=text == WHOLE)
        if not (found := _POINT.fullmatch(text.strip())):
            raise ConfigError(
                f"--at {text!r} is no place. Cure: {CENTRE}, {WHOLE}, a voxel of the file as "
                "--at=30,200,180, or RAS+ millimetres as --at=-12,40,1310mm."
            )
        x, y, z = (float(number) for number in found.groups()[:3])
        return cls((x, y, z), mm=found[4] is not None)


@dataclasses.dataclass(frozen=True, eq=False)
class FieldOfView:
    """The part of a scan that a model sees.

    Attributes:
      scan: the scan as read from the file.
      seen: the network's input in real values; its `to_source` maps to voxels of the file.
      image: (D, H, W, 1) int16, as stored for training.
      scale: scale of `image`: `image * scale + offset` is the real value.
      offset: offset of `image`.
      whole: whether the whole scan was resampled although training used crops.
    """

    scan: Volume
    seen: Volume
    image: np.ndarray
    scale: float
    offset: float
    whole: bool = False

    @classmethod
    def of(cls, scan: Volume, data: Data, recipe: Recipe, at: At, crop: Crop) -> FieldOfView:
        """Preprocesses a scan like the training data, and cuts the network's input from it.

        A scan that is smaller than a crop is at its centre, padded with the lowest value (air).

        Args:
          scan: the scan as read from the file.
          data: data config of the run, with size and units.
          recipe: recipe with which the run's dataset was prepared.
          at: centre of the crop; it is shifted as far as needed to keep the crop in the scan.
          crop: the crop of training. If training used whole volumes, the default place is the whole
            scan.

        Raises:
          DataError: the scan has other units than the run's data, or cannot be preprocessed.
          ConfigError: the place is not in the scan, or the crop is too large.
        """
        volume = recipe(scan)
        _check_units(volume, scan, data)
        eight_bit = scan.array.dtype == np.uint8
        stored, scale, offset = quantize(
            volume.array, volume.units, scan.source, eight_bit=eight_bit
        )
        window = _window(volume, data, at, crop)
        patch = cut(stored, window, data.size, int(stored.min()))
        seen = volume.regrid(patch * scale + offset, None, window.to_volume(data.size))
        image, untrained = patch.astype(np.int16)[..., None], at.whole and not _whole(crop)
        return cls(scan, seen, image, scale, offset, untrained)

    def frame(self) -> np.ndarray:
        """Returns the box in the file: (6,) half-open voxels along its axes, within the scan."""
        return self._reach().clip(0, np.tile(_source_shape(self.scan), 2))

    def share(self) -> float:
        """Returns the share of the scan's voxels inside the field of view."""
        low, high = np.split(self.frame(), 2)
        return float(np.prod((high - low) / _source_shape(self.scan)))

    def beyond(self) -> float:
        """Returns the share of the network's input outside of the scan."""
        (low, high), (first, last) = np.split(self.frame(), 2), np.split(self._reach(), 2)
        return 1 - float(np.prod((high - low) / (last - first)))

    def _reach(self) -> np.ndarray:
        return boxes_to_source(np.array([[0, 0, 0, *self.seen.shape]]), self.seen)[0]


def _check_units(volume: Volume, scan: Volume, data: Data) -> None:
    if volume.units != data.units:
        raise DataError(
            scan.source,
            f"its voxels are {volume.units!r} after the run's preprocessing, and the run was "
            f"trained on {data.units!r} (data.units)",
            f"say --units {data.units} if the file has these units, leave out --recipe, or use a "
            "run for such scans",
        )


def _window(volume: Volume, data: Data, at: At, crop: Crop) -> Window:
    if at.whole or (_whole(crop) and at.point is None):
        return Window.whole(volume.shape)
    wanted = crop.covers(data.size)
    if math.prod(wanted) > MOST:
        raise ConfigError(
            f"--zoom {crop.zoom:g} makes a crop of {' x '.join(map(str, wanted))} voxels, more "
            f"than {MOST:,}. Cure: a smaller zoom, or --at whole."
        )
    return Window.around(volume.shape, wanted, _index(at, volume))


def _whole(crop: Crop) -> bool:
    """Returns whether training resampled whole volumes."""
    return isinstance(crop.at, Whole)


def _index(at: At, volume: Volume) -> np.ndarray:
    """Returns the voxel of the preprocessed volume at the place `at`."""
    if at.point is None:
        return (np.array(volume.shape) - 1) / 2
    if not at.mm:
        return _inside(at, transform(np.linalg.inv(volume.to_source), np.array(at.point)), volume)
    if volume.affine is None:
        raise DataError(
            volume.source,
            "the file does not store the place of its voxels in the patient, so millimetres have "
            "no meaning",
            "give --at a voxel",
        )
    return _inside(at, transform(np.linalg.inv(volume.affine), np.array(at.point)), volume)


def _inside(at: At, index: np.ndarray, volume: Volume) -> np.ndarray:
    if np.all((index >= -0.5) & (index <= np.array(volume.shape) - 0.5)):
        return index
    matrix = volume.affine if at.mm else volume.to_source
    assert matrix is not None
    ends = transform(matrix, np.array([[0, 0, 0], np.array(volume.shape) - 1]))
    reach = ", ".join(f"{round(a)} to {round(b)}" for a, b in np.sort(ends, axis=0).T)
    unit = "mm" if at.mm else "voxels"
    raise ConfigError(
        f"--at {at.point} is not in {volume.source or 'the scan'}: the preprocessing keeps "
        f"{reach} {unit}. Cure: a place within them."
    )


def _source_shape(scan: Volume) -> np.ndarray:
    assert scan.source_shape is not None
    return np.array(scan.source_shape)
