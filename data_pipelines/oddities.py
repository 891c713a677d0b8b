"""Finds unusual properties of a scan. They are measured facts, not guesses."""

from __future__ import annotations

import numpy as np

from data_pipelines import shear
from data_pipelines.plausible import SortedSample, is_8_bit
from data_pipelines.volume import NOT_LABELLED, Volume

_SCANNER = (-1024, 3071)
"""Range of HU in 12 bits, which most scanners store."""


def oddities(volume: Volume) -> list[str]:
    """Returns sentences about unusual geometry, values and mask; [] for a usual scan."""
    return [*_geometry(volume), *_values(volume, SortedSample.of(volume)), *_labels(volume)]


def _geometry(volume: Volume) -> list[str]:
    found = []
    if min(volume.shape) < 16:
        axis = "DHW"[int(np.argmin(volume.shape))]
        found.append(f"There are only {min(volume.shape)} voxels along {axis}.")
    if volume.affine is None:
        found.append("There is no affine: left and right are unknown.")
    else:
        tilt = _tilt(volume.affine)
        if shear.is_sheared(volume.affine, volume.shape):
            angle = shear.degrees(volume.affine)
            found.append(
                f"The grid is sheared by {angle:.1f} degrees, as by a tilted gantry. Recipes "
                "resample it to a rectangular one."
            )
        elif tilt > 1:
            found.append(f"The axes are oblique, by up to {tilt:.1f} degrees.")
    if volume.spacing is None:
        return [*found, "There is no spacing: sizes are unknown."]
    ratio = max(volume.spacing) / min(volume.spacing)
    if ratio > 3:
        found.append(f"Voxels are {ratio:.1f} times longer along one axis than along another.")
    side = np.sort(np.multiply(volume.shape, volume.spacing))
    if side[1] < 50:  # the second shortest side: a stack of few slices is thin but valid
        found.append(f"The field of view is tiny: its second side measures {side[1]:.3g} mm.")
    if side[2] > 2100:
        found.append(f"The field of view is huge: {side[2]:.0f} mm, longer than a patient.")
    return found


def _tilt(affine: np.ndarray) -> float:
    """Returns the largest angle, in degrees, between an axis of the grid and its patient axis."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.abs(directions).max(0).clip(max=1))).max())


def _values(volume: Volume, sample: SortedSample) -> list[str]:
    found = [f"{share:.1%} of the voxels are padding ({value:g})." for value, share in
             sample.padding]  # fmt: skip
    low, high = float(sample.ordered[0]), float(sample.ordered[-1])
    for end, name, enough in ((low, "lowest", 0.01), (high, "highest", 0.001)):
        if sample.share(end, end) > enough:
            found.append(
                f"{sample.share(end, end):.1%} of the voxels have the {name} value, {end:g}."
            )
    if is_8_bit(volume, sample):
        found.append("The values are those of an 8-bit image.")
    if volume.units == "HU":
        outside = 1 - sample.share(*_SCANNER)
        if outside > 0:
            found.append(
                f"{outside:.2%} of the voxels are outside {_SCANNER[0]} to {_SCANNER[1]} HU, "
                f"from {low:g} to {high:g}."
            )
    return found


def _labels(volume: Volume) -> list[str]:
    if volume.mask is None:
        return []
    labels = {int(label) for label in np.unique(volume.mask)} - {0}
    if not labels:
        return ["The mask is empty."]
    unnamed = sorted(labels - set(volume.mask_names) - {NOT_LABELLED})
    if volume.mask_names and unnamed:
        return [f"Labels without a name are in the mask: {', '.join(map(str, unnamed))}."]
    return []
