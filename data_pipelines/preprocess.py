"""Recipes of preprocessing: tuples of steps with a name, a JSON form and a fingerprint.

The steps are defined in `spatial` and `intensity`, and the inverse in `restore`. This module
exports all that callers need:

    volume = preprocess.RECIPES["e3d"](readers.read("scan.nii.gz", units="HU"))
    mask = preprocess.put_back(predicted, volume)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from data_pipelines.intensity import (
    ClipIntensity,
    RequireUnits,
    ScaleIntensity,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
)
from data_pipelines.restore import (
    boxes_from_source,
    boxes_to_source,
    boxes_to_world,
    points_to_world,
    put_back,
    save_like,
)
from data_pipelines.spatial import (
    CropForeground,
    Orientation,
    Permute,
    Resize,
    ResizeWithPadOrCrop,
    Size,
    Spacing,
    center_crop,
)
from data_pipelines.volume import Volume

__all__ = [
    "RECIPES",
    "ClipIntensity",
    "CropForeground",
    "Orientation",
    "Permute",
    "Recipe",
    "RequireUnits",
    "Resize",
    "ResizeWithPadOrCrop",
    "ScaleIntensity",
    "ScaleIntensityRange",
    "ScaleIntensityRangePercentiles",
    "Spacing",
    "Step",
    "as_is",
    "boxes_from_source",
    "boxes_to_source",
    "boxes_to_world",
    "center_crop",
    "ct",
    "e3d",
    "m3d",
    "m3d_cap",
    "m3d_refseg",
    "m3d_seg",
    "m3d_slices",
    "mr",
    "points_to_world",
    "put_back",
    "save_like",
]

_VERSION = 2
"""Increase it when the result of a step changes, so that datasets are prepared again."""

M3D_SIZE: Size = (32, 256, 256)


class Step(Protocol):
    """A preprocessing step: a frozen dataclass of numbers that maps a volume to a new one."""

    def __call__(self, volume: Volume) -> Volume:
        """Returns a new volume; the given volume is not changed."""
        ...


_STEPS: dict[str, Callable[..., Step]] = {
    step.__name__: step
    for step in (
        ClipIntensity,
        CropForeground,
        Orientation,
        Permute,
        RequireUnits,
        Resize,
        ResizeWithPadOrCrop,
        ScaleIntensity,
        ScaleIntensityRange,
        ScaleIntensityRangePercentiles,
        Spacing,
    )
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A sequence of steps.

    Attributes:
      steps: steps in the order of their application; dataclasses from this module.
    """

    steps: tuple[Step, ...]

    def __call__(self, volume: Volume) -> Volume:
        """Returns the preprocessed volume; its `to_source` inverts all steps."""
        for step in self.steps:
            volume = step(volume)
        return volume

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the steps as JSON values, each with its class name under "step"."""
        return [{"step": type(step).__name__, **_fields(step)} for step in self.steps]

    @classmethod
    def from_json(cls, steps: Sequence[Mapping[str, Any]]) -> Recipe:
        """Returns the recipe from the JSON values of `to_json`.

        Raises:
          ValueError: a step or a field is unknown.
        """
        return cls(tuple(_step(**fields) for fields in steps))

    def fingerprint(self) -> str:
        """Returns a short hash of the steps, their values and order, equal on all machines."""
        text = json.dumps([_VERSION, self.to_json()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _m3d_fit(size: Size) -> tuple[Step, Step]:
    return CropForeground(), Resize(size, anti_alias=False, mask_mode="floor")


def m3d_cap(size: Size = M3D_SIZE) -> Recipe:
    """Returns M3D-Cap's released recipe, for slices (D, H, W) without an affine.

    Source: Data/process/m3d_cap_data_prepare.py.
    """
    return Recipe((ScaleIntensity(), *_m3d_fit(size)))


def m3d_seg(size: Size = M3D_SIZE) -> Recipe:
    """Returns M3D-Seg's released recipe, from NIfTI order (x, y, z) to (z, y, x).

    Source: m3d_seg_data_prepare.py.
    """
    return Recipe((Permute((2, 1, 0)), ScaleIntensity(), *_m3d_fit(size)))


def m3d_refseg(size: Size = M3D_SIZE) -> Recipe:
    """Returns M3D-RefSeg's released recipe, from (x, y, z) to (z, x, y), unlike M3D-Seg.

    Source: m3d_refseg_data_prepare.py.
    """
    return Recipe((Permute((2, 0, 1)), ScaleIntensityRangePercentiles(), *_m3d_fit(size)))


def m3d(size: Size = M3D_SIZE) -> Recipe:
    """Returns a corrected recipe with M3D's size and range, for new training and all files.

    It differs from M3D in four ways: one orientation for all datasets, percentiles instead of the
    minimum and maximum, which a single metal voxel distorts, anti-aliasing, and masks sampled at
    the same points as the image.
    """
    return Recipe((Orientation(), ScaleIntensityRangePercentiles(), CropForeground(), Resize(size)))


def m3d_slices(size: Size = M3D_SIZE) -> Recipe:
    """Returns `m3d` without its first step, for slices and arrays of unknown orientation."""
    return Recipe(m3d(size).steps[1:])


def e3d() -> Recipe:
    """Returns E3D-GPT's recipe: HU -1000..1000 at 3 x 1.5 x 1.5 mm, 128 x 256 x 256 voxels.

    Smaller volumes are padded with air. The crop to 112 x 224 x 224 is part of training. Source:
    arXiv 2410.14200, and later code of its first author (laihaoran/Med3D-R1).
    """
    return Recipe(
        (
            RequireUnits("HU"),
            Orientation(),
            Spacing((3.0, 1.5, 1.5)),
            ResizeWithPadOrCrop((128, 256, 256), value=-1024),
            ClipIntensity(-1000, 1000),
        )
    )


def ct(spacing: tuple[float, float, float] = (3.0, 3.0, 3.0)) -> Recipe:
    """Returns the recipe for a whole CT in HU at one spacing (mm), of any size.

    Values are limited to -1024..3071, the range of 12 bits.
    """
    return Recipe((RequireUnits("HU"), Orientation(), ClipIntensity(-1024, 3071), Spacing(spacing)))


def mr(spacing: tuple[float, float, float] = (3.0, 3.0, 3.0)) -> Recipe:
    """Returns the recipe for a whole MR at one spacing (mm), of any size, scaled to 0..1.

    Units change from "raw" to "unit". The values of an MR have a meaning only within the scan, so
    it is scaled by its own percentiles. The upper end is the 99.5 percentile, because a bright
    vessel or an artefact determines the maximum. Empty margins are cropped first, because zeros
    would lower this percentile.
    """
    return Recipe(
        (
            RequireUnits("raw"),
            Orientation(),
            CropForeground(),
            Spacing(spacing),
            ScaleIntensityRangePercentiles(),
        )
    )


def as_is() -> Recipe:
    """Returns a recipe without steps, for preprocessed volumes such as M3D's .npy files."""
    return Recipe(())


RECIPES: dict[str, Recipe] = {
    "as_is": as_is(),
    "m3d": m3d(),
    "m3d_slices": m3d_slices(),
    "m3d_cap": m3d_cap(),
    "m3d_seg": m3d_seg(),
    "m3d_refseg": m3d_refseg(),
    "e3d": e3d(),
    "ct": ct(),
    "mr": mr(),
}


def _fields(step: Step) -> dict[str, Any]:
    assert dataclasses.is_dataclass(step)
    return json.loads(json.dumps(dataclasses.asdict(step)))


def _step(step: str, **fields: Any) -> Step:
    if step not in _STEPS:
        raise ValueError(f"unknown preprocessing step {step!r}")
    try:
        return _STEPS[step](
            **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        )
    except TypeError as error:
        raise ValueError(f"{step}: {error}") from error
