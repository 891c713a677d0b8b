"""The command `inspect`: prints the facts and oddities of one scan, and draws a picture of it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from nibabel import orientations

from data_pipelines import readers
from data_pipelines.datasets.search import Search
from data_pipelines.errors import DataError
from data_pipelines.files import check_target
from data_pipelines.inspect_options import InspectOptions
from data_pipelines.inspect_text import print_facts, print_scans
from data_pipelines.oddities import oddities
from data_pipelines.planes import draw_planes
from data_pipelines.plausible import SortedSample, check_values
from data_pipelines.program import program
from data_pipelines.readers import content, nifti
from data_pipelines.volume import Volume

DOUBTFUL = 3
"""Exit status when `prepare` would put the scan into quarantine; `prepare` exits with the same."""
_WINDOWS = {"full": (-1000.0, 1000.0), "soft": (-160.0, 240.0), "bone": (-450.0, 1050.0)}


@dataclass(frozen=True)
class Inspect(InspectOptions):
    """The command `inspect` with its options."""

    def run(self) -> int:
        """Prints the facts, draws the picture and returns the exit status.

        Raises:
          DataError: the scan or the mask cannot be read, or the picture cannot be written.
        """
        if self.picture:
            check_target(self.picture)
        path = epath.Path(self.path)
        scans = [path] if self.series else _scans(path)
        if len(scans) > 1:
            return self._many(scans)
        volume = self._read(scans[0])
        kind = _format(scans[0], volume)
        facts = {"format": kind, **describe(volume), "units_from": self._told(kind, volume)}
        if kind == "nifti":
            facts["oddities"] += nifti.contradictions(scans[0])
        facts["next"] = _next(
            scans[0], volume, self.mask, self.structures, could_be_hu=facts["could_be_hu"]
        )
        if self.picture:
            draw_planes(self.picture, volume, self._limits(volume))
            facts["picture"] = self.picture
        if self.json:
            print(json.dumps(facts, indent=2))
        else:
            print_facts(facts)
        return DOUBTFUL if facts["doubt"] else 0

    def _read(self, path: epath.Path) -> Volume:
        volume = readers.read(
            path, self.mask, units=self.units, series=self.series, structures=self.structures
        )
        if self.structures or not self.mask:
            return volume
        found = readers.find_mask(self.mask)
        names = readers.organ_files(found.path) if found.form == "organs" else ()
        return dataclasses.replace(volume, mask_names=dict(enumerate(names, 1)))

    def _told(self, kind: str, volume: Volume) -> str:
        if self.units is not None:
            return "you"
        return "file" if kind == "dicom" or volume.units != "raw" else "nobody"

    def _limits(self, volume: Volume) -> tuple[float, float]:
        if volume.units == "HU":
            return _WINDOWS[self.window]
        sample = SortedSample.of(volume)
        return sample.percentile(1), sample.percentile(99)

    def _many(self, scans: list[epath.Path]) -> int:
        command = f"{program()} prepare folder --source {shlex.quote(self.path)} --units HU"
        if self.json:
            print(json.dumps({"scans": len(scans), "next": command}, indent=2))
        else:
            print_scans(epath.Path(self.path), scans, command)
        return 0


def describe(volume: Volume) -> dict[str, Any]:
    """Returns facts about a volume as JSON values, with sizes in mm and ml, axes as (D, H, W)."""
    sample = SortedSample.of(volume)
    spacing = volume.spacing
    size = None if spacing is None else np.multiply(volume.shape, spacing).round(1).tolist()
    return {
        "shape": list(volume.shape),
        "dtype": str(volume.array.dtype),
        "axes": None if volume.affine is None else _axes(volume.affine),
        "spacing_mm": None if spacing is None else [round(side, 4) for side in spacing],
        "field_of_view_mm": size,
        "affine": None if volume.affine is None else volume.affine.round(4).tolist(),
        "units": volume.units,
        "range": [float(volume.array.min()), float(volume.array.max())],
        "percentiles": {str(at): sample.percentile(at) for at in (1, 5, 25, 50, 75, 95, 99)},
        "oddities": oddities(volume),
        "doubt": _doubt(volume),
        "could_be_hu": volume.units == "raw" and _could_be_hu(volume, sample),
        "labels": _labels(volume),
    }


def _scans(path: epath.Path) -> list[epath.Path]:
    """Returns the volumes in a folder, or the path itself for the reader if there are none."""
    return (list(Search(path).volumes()) if path.is_dir() else []) or [path]


def _format(path: epath.Path, volume: Volume) -> str:
    if not path.is_dir():
        return content.file_format(path)
    # A readable folder holds image slices or DICOM files, and only DICOM has an affine.
    return "image slices" if volume.affine is None else "dicom"


def _axes(affine: np.ndarray) -> str:
    return "".join(orientations.aff2axcodes(affine))


def _doubt(volume: Volume) -> dict[str, str] | None:
    try:
        check_values(volume)
    except DataError as error:
        return {"problem": error.problem, "cure": error.cure}
    return None


def _could_be_hu(volume: Volume, sample: SortedSample) -> bool:
    # Air is the only evidence: an MR can have the values of soft tissue.
    return sample.percentile(1) < -500 and not _doubt(dataclasses.replace(volume, units="HU"))


def _labels(volume: Volume) -> list[dict[str, Any]] | None:
    if volume.mask is None:
        return None
    voxel = None if volume.spacing is None else float(np.prod(volume.spacing)) / 1000
    return [
        {
            "label": int(label),
            "name": volume.mask_names.get(int(label), ""),
            "voxels": int(count),
            "ml": None if voxel is None else round(int(count) * voxel, 2),
        }
        for label, count in zip(*np.unique(volume.mask, return_counts=True), strict=True)
        if label
    ]


def _next(
    path: epath.Path,
    volume: Volume,
    mask: str | None,
    structures: Sequence[str],
    *,
    could_be_hu: bool,
) -> str:
    source = path if path.is_dir() else path.parent
    units = "HU" if could_be_hu else volume.units
    options = "--recipe mr" if units == "raw" else f"--units {units}"
    if mask is not None and epath.Path(mask).parent == path.parent:
        options += f" --masks {shlex.quote(epath.Path(mask).name)}"
        options += f" --structures {shlex.join(structures)}" if structures else ""
    return f"{program()} prepare folder --source {shlex.quote(str(source))} {options}"
