"""Intensity preprocessing steps, named and parametrised as in MONAI. They leave the grid alone."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.volume import Units, Volume


@dataclasses.dataclass(frozen=True)
class RequireUnits:
    """Refuses volumes in other units, so that a window in HU never meets an MR.

    Attributes:
      units: what the following steps take for granted.
    """

    units: Units = "HU"

    def __call__(self, volume: Volume) -> Volume:
        """Raises: DataError, when the volume has other units."""
        if volume.units == self.units:
            return volume
        raise DataError(
            volume.source,
            f"the recipe needs voxels in {self.units}, these are {volume.units!r}",
            f"say --units {self.units} (in Python: units={self.units!r}) if the files hold that, "
            "or use a recipe for any units, such as 'm3d'",
        )


@dataclasses.dataclass(frozen=True)
class ClipIntensity:
    """Limits the values to low..high; dtype and units stay.

    Attributes:
      low: in the volume's units.
      high: in the volume's units.
    """

    low: float
    high: float

    def __call__(self, volume: Volume) -> Volume:
        """The clipped volume."""
        array = volume.array
        if array.dtype.kind in "iu":
            limits = np.iinfo(array.dtype)  # int8 cannot even state a limit of 3071
            low, high = max(self.low, limits.min), min(self.high, limits.max)
            return dataclasses.replace(volume, array=array.clip(int(low), int(high)))
        return dataclasses.replace(volume, array=array.clip(self.low, self.high))


@dataclasses.dataclass(frozen=True)
class ScaleIntensity:
    """Min-max over the whole volume: float32 0..1; a constant volume becomes 0."""

    def __call__(self, volume: Volume) -> Volume:
        """The volume in units "unit"."""
        low, high = float(volume.array.min()), float(volume.array.max())
        return _scale(volume, low, high, 0.0, 1.0, clip=True)


@dataclasses.dataclass(frozen=True)
class ScaleIntensityRange:
    """Maps a_min..a_max linearly to b_min..b_max, in float32.

    Attributes:
      a_min: in the volume's units.
      a_max: in the volume's units.
      b_min: of the result.
      b_max: of the result.
      clip: limit the result to b_min..b_max.
    """

    a_min: float
    a_max: float
    b_min: float = 0.0
    b_max: float = 1.0
    clip: bool = True

    def __call__(self, volume: Volume) -> Volume:
        """The scaled volume; "unit" if the result lies in 0..1, else "raw"."""
        return _scale(volume, self.a_min, self.a_max, self.b_min, self.b_max, self.clip)


@dataclasses.dataclass(frozen=True)
class ScaleIntensityRangePercentiles:
    """Maps the lower..upper percentile of the volume's own values linearly to b_min..b_max.

    Attributes:
      lower: percentile, 0..100.
      upper: percentile, 0..100.
      b_min: of the result.
      b_max: of the result.
      clip: limit the result to b_min..b_max.
    """

    lower: float = 0.5
    upper: float = 99.5
    b_min: float = 0.0
    b_max: float = 1.0
    clip: bool = True

    def __call__(self, volume: Volume) -> Volume:
        """The scaled volume; "unit" if the result lies in 0..1, else "raw"."""
        a_min, a_max = percentiles(volume.array, self.lower, self.upper)
        return _scale(volume, a_min, a_max, self.b_min, self.b_max, self.clip)


def percentiles(array: np.ndarray, *at: float) -> list[float]:
    """Percentiles with linear interpolation in float64, whatever the array's dtype.

    np.percentile interpolates float32 arrays in float32 and copies others to float64.
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
