"""Descriptions of scans, fields of view and places of replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from nibabel import orientations
from nibabel.affines import obliquity

from data_pipelines.errors import printable
from data_pipelines.volume import Volume
from m3djax.ask.field_of_view import FieldOfView
from m3djax.ask.places import millimetres, shown_mm, shown_voxels
from m3djax.ask.session import Reply
from m3djax.runs.results import Results

_TOLD = 0.05
"""Smallest share of the model's input outside of the scan that a description mentions."""
_TILT = np.deg2rad(0.5)


def describe(fov: FieldOfView) -> list[str]:
    """Returns two lines: a description of the scan, and of the part that the model sees."""
    scan, frame = fov.scan, fov.frame()
    sides = " x ".join(map(str, scan.source_shape or ()))
    about = f"{printable(scan.source)}: {sides} voxels{_axes(scan)}{_spacing(scan)}, {scan.units}"
    how = "resampled as a whole, unlike in training" if fov.whole else "cut as in training"
    share, size = fov.share(), " x ".join(map(str, fov.seen.shape))
    seen = f"looked at: {shown_voxels(frame)}, {share:.0%} of the scan, {how}, as {size} voxels"
    if (beyond := fov.beyond()) >= _TOLD:
        seen += f", {beyond:.0%} of them beyond the scan and empty"
    where = millimetres(frame, scan)
    if where is not None:
        seen += f"; {shown_mm(where)}"
    return [about, seen]


def measured(folder: epath.PathLike) -> list[str]:
    """Returns the results of the last evaluation of a run, or a line that there is none."""
    results = Results.read(folder)
    if results is None or not (found := results.summary()):
        return ["measured: nothing; the quality of its answers is unknown"]
    return [f"measured: {sentence}" for sentence in found.splitlines()]


def about_places(reply: Reply) -> Iterator[str]:
    """Yields a line for every place of a reply, and for every box without a place."""
    for place in reply.places:
        yield f"box {place.text}: {place}"
    for text in reply.unreadable:
        yield f"not a readable box, left out: {printable(text)}"
    for text in reply.outside:
        yield f"box {text} lies outside of the scan, left out"
    for text in reply.unplaced:
        yield f"box {text} is not placed: the answer does not say in which scan"


def counted(replies: Sequence[Reply]) -> str:
    """Returns a line with the numbers of placed, unreadable and outside boxes; "" without boxes."""
    placed = sum(len(reply.places) for reply in replies)
    unreadable = sum(len(reply.unreadable) for reply in replies)
    outside = sum(len(reply.outside) for reply in replies)
    if not placed + unreadable + outside:
        return ""
    return f"boxes: {placed} placed, {unreadable} unreadable, {outside} outside of the scan"


def _axes(scan: Volume) -> str:
    """Returns the directions of the file's own axes."""
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
