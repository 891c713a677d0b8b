"""A scan, and the part of it that is looked at, in words."""

from __future__ import annotations

import numpy as np
from etils import epath
from nibabel import orientations
from nibabel.affines import obliquity

from data_pipelines.errors import printable
from data_pipelines.volume import Volume
from m3djax.ask.part import Part
from m3djax.ask.places import millimetres, shown_mm, shown_voxels
from m3djax.evaluate.run import Results

_TOLD = 0.05
"""Least part of the model's input beyond the scan that is told."""
_TILT = np.deg2rad(0.5)


def describe(part: Part) -> list[str]:
    """Two lines: what the scan is, and what is looked at."""
    scan, frame = part.scan, part.frame()
    sides = " x ".join(map(str, scan.source_shape or ()))
    about = f"{printable(scan.source)}: {sides} voxels{_axes(scan)}{_spacing(scan)}, {scan.units}"
    how = "resampled as a whole, unlike in training" if part.whole else "cut as in training"
    share, size = part.share(), " x ".join(map(str, part.seen.shape))
    seen = f"looked at: {shown_voxels(frame)}, {share:.0%} of the scan, {how}, as {size} voxels"
    if (beyond := part.beyond()) >= _TOLD:
        seen += f", {beyond:.0%} of them beyond the scan and empty"
    where = millimetres(frame, scan)
    if where is not None:
        seen += f"; {shown_mm(where)}"
    return [about, seen]


def measured(folder: epath.PathLike) -> list[str]:
    """How far the answers of a run may be believed: what its last evaluation found."""
    results = Results.read(folder)
    if results is None or not (found := results.summary()):
        return ["measured: nothing; whether its answers are right is not known"]
    return [f"measured: {sentence}" for sentence in found.splitlines()]


def _axes(scan: Volume) -> str:
    """Where the file's own axes run to."""
    if scan.source_affine is None:
        return ""
    along = f" along {''.join(orientations.aff2axcodes(scan.source_affine))}"
    tilted = obliquity(scan.source_affine).max() > _TILT
    return along + (" (oblique: mm are of upright boxes around)" if tilted else "")


def _spacing(scan: Volume) -> str:
    if scan.source_affine is None:
        return ""
    sides = np.linalg.norm(scan.source_affine[:3, :3], axis=0)
    return f" of {' x '.join(f'{side:.3g}' for side in sides)} mm"
