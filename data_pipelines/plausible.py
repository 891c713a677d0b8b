"""Checks whether the values of a volume agree with its units.

Hounsfield units have fixed points: air is -1000, fat -100, water 0, muscle 50, and hardly any bone
exceeds 2000. These points reveal a missing rescale, which no header shows. A crop need not have all
of them, so only values that are impossible in a CT are refused. Some errors cannot be detected:

- in a crop of one tissue, every error that moves its values to those of another tissue, such as
  most wrong slopes;
- a slope of 0.1 without an intercept: air then has the values of fat;
- twice the right slope with the right intercept, in every third scan: enough voxels with partial
  volumes of air and tissue then have the values of tissue.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.volume import Volume

_VOXELS = 2_000_000
"""Size of a sample: 2000 voxels lie below the 0.1 percentile, and the sample is sorted in 0.1 s."""
_PADDING = -1100.0
"""HU. An isolated, repeated value below it is padding outside the scanner's circular field of view
(usually -1500, -2000, -3024 or -8192). It is not air: air is -1000 plus or minus the noise."""
_TOO_LOW = -1200.0
"""HU. At most 5 % of a scan can be below it: of air at -1000 with a noise of 100 HU, 2.3 % are, and
no scanner has so much noise in air. With an intercept of -1024 applied twice, all air is near -2000
HU."""
_TISSUE = (-200.0, 300.0)
"""HU of fat, water, organs, and blood with contrast agent. In whole scans, from legs to chests,
33 % of the voxels or more were in this range; in crops of lung 3 %; in wrongly rescaled scans 0 to
4 %. Less than 2 % is refused."""
_TOO_DENSE = 4000.0
"""HU. At most 1 % of a scan can exceed it: bone reaches 2000, 12 bits 3071, and metal is rare."""
_NARROW = 10.0
"""HU. In every CT, the range from the 0.1 to the 99.9 percentile is larger: it is six standard
deviations of a uniform organ, and noise below 2 HU does not occur. Images scaled to 0..1 or to unit
variance have a smaller range."""
_LIGHT = -50.0
"""HU between fat and water with its noise. A scan with less than 1 % fat or air is a crop of
organs. Such a crop may be entirely above 300 HU, in blood with contrast agent."""
_RAISED = (800.0, 1350.0)
"""Values of fat and soft tissue when an intercept of -1000 or -1024 is missing. The voxels above
700 are then uniform, or the majority. Bone is neither; its values spread up to 2000."""
_BACKGROUND = (-25.0, 50.0, 300.0)
"""Limits of the 0.1, 5 and 75 percentiles that identify an MR, whose background is a floor at 0.
In CT, noise takes organs below the first limit. A CT crop with a quarter of its voxels above the
last limit has contrast agent but no floor."""
_FLOOR = (-700.0, -250.0)
"""HU between lung and fat. Only partial volumes of air and tissue are in this range; no tissue is
uniform there. If the lowest 5 % of a scan are there, within 100 HU, they are air at half its value.
"""
_UNIT_TOLERANCE = 1e-3

_Reason = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class SortedSample:
    """A sorted sample of the values of a volume.

    Attributes:
      ordered: (n,) values in ascending order, of at most about 2 million voxels at an even stride,
        without padding.
      padding: (value, share 0..1) of each padding value that was removed.
    """

    ordered: np.ndarray
    padding: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, volume: Volume) -> SortedSample:
        """Draws the sample of a volume; padding is removed only if the units are HU."""
        stride = volume.array.size // _VOXELS | 1  # odd: does not hit the same columns only
        ordered = np.sort(volume.array.flat[::stride])  # copies only the sample
        return cls(*_without_padding(ordered)) if volume.units == "HU" else cls(ordered)

    def percentile(self, percent: float) -> float:
        """Returns the value that `percent` (0..100) of the voxels do not exceed."""
        return float(self.ordered[round(percent / 100 * (len(self.ordered) - 1))])

    def share(self, low: float, high: float) -> float:
        """Returns the share (0..1) of the voxels in low..high, both included."""
        start = np.searchsorted(self.ordered, low)
        return float(np.searchsorted(self.ordered, high, "right") - start) / len(self.ordered)


def check_values(volume: Volume) -> None:
    """Checks that the values agree with `volume.units`.

    Raises:
      DataError: they do not agree, or all voxels are equal.
    """
    low, high = float(volume.array.min()), float(volume.array.max())
    reason = None
    if low == high:
        reason = f"all voxels are {low:g}", "leave this scan out, or export it again"
    elif volume.units == "HU":
        reason = _not_hounsfield(volume, SortedSample.of(volume))
    elif volume.units == "unit" and not (low >= -_UNIT_TOLERANCE and high <= 1 + _UNIT_TOLERANCE):
        problem = f"the values run from {low:g} to {high:g}, not within 0 to 1"
        reason = problem, "read it with units='raw'"
    if reason is not None:
        raise DataError(volume.source, *reason)


def is_8_bit(volume: Volume, sample: SortedSample) -> bool:
    """Returns whether the values are 8-bit grey values, by their dtype or by their range."""
    if volume.array.dtype.itemsize == 1:
        return True
    low, high = volume.array.min(), volume.array.max()
    # A crop of organs may be within 0..255, but with its noise it has no floor at 0.
    return bool(low == 0 and (high == 255 or (high < 255 and sample.share(0, 0) > 0.01)))


def _without_padding(ordered: np.ndarray) -> tuple[np.ndarray, tuple[tuple[float, float], ...]]:
    total, padding = len(ordered), []
    while ordered[0] < _PADDING:
        count = int(np.searchsorted(ordered, ordered[0], "right"))
        close = int(np.searchsorted(ordered, float(ordered[0]) + 50, "right")) - count
        # Air has many voxels of similar values; padding has only a few, blended at its edge.
        if count < max(2, total / 1000) or close > count / 10 or count == len(ordered):
            break
        padding.append((float(ordered[0]), count / total))
        ordered = ordered[count:]
    return ordered, tuple(padding)


def _not_hounsfield(volume: Volume, sample: SortedSample) -> _Reason | None:
    """Returns why the values cannot be HU, and the cure; None if they can."""
    scaled = "take the scan before it was windowed or scaled, or leave out the units"
    once = "convert the DICOM series again, and apply its slope and intercept once"
    add = "add the intercept (usually -1024); leave out the units if it is no CT"
    p = {at: sample.percentile(at) for at in (0.1, 1, 5, 75, 99, 99.9)}
    if p[99.9] - p[0.1] < _NARROW:
        return f"the values span {p[0.1]:.3g} to {p[99.9]:.3g}, too narrow for HU", scaled
    if is_8_bit(volume, sample):
        return "the values are those of an 8-bit image (0 to 255), not HU", scaled
    if p[99] > _TOO_DENSE:
        problem = f"1 % of the voxels are above {p[99]:.0f}, denser than bone: too wide for HU"
        return f"{problem}, as if the rescale slope were too large or not applied", once
    if p[5] < _TOO_LOW:
        problem = f"5 % of the voxels are below {p[5]:.0f} HU, and air is -1000"
        cause = "as if the intercept had been applied twice, or the slope were too large"
        return f"{problem}: {cause}", once
    if p[1] <= _LIGHT and sample.share(*_TISSUE) < 0.02:
        problem = f"only {sample.share(*_TISSUE):.1%} of the voxels are fat or soft tissue"
        return f"{problem} (-200 to 300 HU): as if rescaled wrongly, or twice", once
    if p[1] > _LIGHT and _raised(sample):
        problem = "nothing is as light as air (-1000) or fat (-100), and much is above 700"
        return f"{problem}: as if the rescale intercept had not been applied", add
    low, background, high = _BACKGROUND
    if p[0.1] > low and p[5] < background and p[75] > high:
        problem = f"nothing lies below a floor at 0, and a quarter of the voxels above {p[75]:.0f}"
        return f"{problem}: as in MR, or as if the rescale intercept had not been applied", add
    if _FLOOR[0] < p[0.1] < _FLOOR[1] and p[5] - p[0.1] < 100:
        problem = f"the lightest voxels lie near {p[0.1]:.0f} HU, where air should be -1000"
        return f"{problem}: as if the rescale slope were too small, or the values clipped", once
    return None


def _raised(sample: SortedSample) -> bool:
    """Returns whether soft tissue has the values that a missing intercept gives it."""
    dense = sample.share(700, np.inf)
    return dense > 0.5 or (dense > 0.15 and sample.share(*_RAISED) > 0.8 * dense)
