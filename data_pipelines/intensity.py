"""Intensity steps of preprocessing, with MONAI's names and parameters. The grid stays the same."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.volume import Units, Volume


@dataclasses.dataclass(frozen=True)
class RequireUnits:
    """A check of the units, so that a window in HU is never applied to an MR.

    Attributes:
      units: units that the following steps need.
    """

    units: Units = "HU"

    def __call__(self, volume: Volume) -> Volume:
        """Returns the volume unchanged.

        Raises:
          DataError: the volume has other units.
        """
        if volume.units == self.units:
            return volume
        raise DataError(
            volume.source,
            f"the recipe needs voxels in {self.units}, these are {volume.units!r}",
            f"say --units {self.units} (in Python: units={self.units!r}) if the files have these "
            "units, or use a recipe for any units, such as 'm3d'",
        )


@dataclasses.dataclass(frozen=True)
class ClipIntensity:
    """A step that limits the values to low..high and keeps dtype and units.

    Attributes:
      low: lower limit, in the volume's units.
      high: upper limit, in the volume's units.
    """

    low: float
    high: float

    def __call__(self, volume: Volume) -> Volume:
        """Returns the clipped volume."""
        array = volume.array
        if array.dtype.kind in "iu":
            limits = np.iinfo(array.dtype)  # int8 cannot hold a limit of 3071
            low, high = max(self.low, limits.min), min(self.high, limits.max)
            return dataclasses.replace(volume, array=array.clip(int(low), int(high)))
        return dataclasses.replace(volume, array=array.clip(self.low, self.high))


@dataclasses.dataclass(frozen=True)
class ScaleIntensity:
    """A step that maps the minimum..maximum of the volume to float32 0..1.

    A constant volume becomes 0.
    """

    def __call__(self, volume: Volume) -> Volume:
        """Returns the scaled volume, with units "unit"."""
        low, high = float(volume.array.min()), float(volume.array.max())
        return _scale(volume, low, high, 0.0, 1.0, clip=True)


@dataclasses.dataclass(frozen=True)
class ScaleIntensityRange:
    """A step that maps a_min..a_max linearly to b_min..b_max, in float32.

    Attributes:
      a_min: value of the input that becomes b_min, in the volume's units.
      a_max: value of the input that becomes b_max, in the volume's units.
      b_min: lower end of the result.
      b_max: upper end of the result.
      clip: limit the result to b_min..b_max.
    """

    a_min: float
    a_max: float
    b_min: float = 0.0
    b_max: float = 1.0
    clip: bool = True

    def __call__(self, volume: Volume) -> Volume:
        """Returns the scaled volume; units "unit" if the result is clipped to 0..1, else "raw"."""
        return _scale(volume, self.a_min, self.a_max, self.b_min, self.b_max, self.clip)


@dataclasses.dataclass(frozen=True)
class ScaleIntensityRangePercentiles:
    """A step that maps the lower..upper percentile of the volume linearly to b_min..b_max.

    Attributes:
      lower: percentile that becomes b_min, 0..100.
      upper: percentile that becomes b_max, 0..100.
      b_min: lower end of the result.
      b_max: upper end of the result.
      clip: limit the result to b_min..b_max.
    """

    lower: float = 0.5
    upper: float = 99.5
    b_min: float = 0.0
    b_max: float = 1.0
    clip: bool = True

    def __call__(self, volume: Volume) -> Volume:
        """Returns the scaled volume; units "unit" if the result is clipped to 0..1, else "raw"."""
        a_min, a_max = percentiles(volume.array, self.lower, self.upper)
        return _scale(volume, a_min, a_max, self.b_min, self.b_max, self.clip)


def percentiles(array: np.ndarray, *at: float) -> list[float]:
    """Returns percentiles with linear interpolation in float64, for an array of any real dtype.

    In contrast, np.percentile interpolates float32 arrays in float32 and copies others to float64.
    """
    rank = np.array(at) / 100 * (array.size - 1)
    below, above = np.floor(rank).astype(int), np.ceil(rank).astype(int)
    ordered = np.partition(array, np.unique([below, above]), axis=None)
    low, high = ordered[below].astype(np.float64), ordered[above].astype(np.float64)
    return (low + (high - low) * (rank - below)).tolist()


def _scale(
    volume: Volume, a_min: float, a_max: float, b_min: float, b_max: float, clip: bool
) -> Volume:
    array = volume.array.astype(np.float32)
    array -= np.float32(a_min)
    array *= np.float32((b_max - b_min) / max(a_max - a_min, 1e-8))
    array += np.float32(b_min)
    if clip:
        np.clip(array, b_min, b_max, out=array)
    units: Units = "unit" if clip and 0 <= b_min <= b_max <= 1 else "raw"
    return dataclasses.replace(volume, array=array, units=units)
