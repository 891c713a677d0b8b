"""Recipes: a preprocessing is a tuple of steps, with a name, a JSON form and a fingerprint.

The steps live in `spatial` and `intensity`, the way back in `restore`; this module gathers what
callers need:

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
"""Raise it when a step computes something else than before: prepared data is then redone."""

M3D_SIZE: Size = (32, 256, 256)


class Step(Protocol):
    """A frozen dataclass of numbers that turns a volume into another one."""

    def __call__(self, volume: Volume) -> Volume:
        """Returns a new volume; the given one is left as it is."""
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
    """Steps applied in order.

    Attributes:
      steps: dataclasses from this module.
    """

    steps: tuple[Step, ...]

    def __call__(self, volume: Volume) -> Volume:
        """The preprocessed volume; its `to_source` is the way back through all steps."""
        for step in self.steps:
            volume = step(volume)
        return volume

    def to_json(self) -> list[dict[str, Any]]:
        """The steps as JSON values, each with its class name under "step"."""
        return [{"step": type(step).__name__, **_fields(step)} for step in self.steps]

    @classmethod
    def from_json(cls, steps: Sequence[Mapping[str, Any]]) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises:
          ValueError: a step or a field is unknown.
        """
        return cls(tuple(_step(**fields) for fields in steps))

    def fingerprint(self) -> str:
        """A short hash that changes with any step, number or order; equal across machines."""
        text = json.dumps([_VERSION, self.to_json()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _m3d_fit(size: Size) -> tuple[Step, Step]:
    return CropForeground(), Resize(size, anti_alias=False, mask_mode="floor")


def m3d_cap(size: Size = M3D_SIZE) -> Recipe:
    """M3D-Cap as released (Data/process/m3d_cap_data_prepare.py): slices (D, H, W), no affine."""
    return Recipe((ScaleIntensity(), *_m3d_fit(size)))


def m3d_seg(size: Size = M3D_SIZE) -> Recipe:
    """M3D-Seg as released (m3d_seg_data_prepare.py): NIfTI order (x, y, z) to (z, y, x)."""
    return Recipe((Permute((2, 1, 0)), ScaleIntensity(), *_m3d_fit(size)))


def m3d_refseg(size: Size = M3D_SIZE) -> Recipe:
    """M3D-RefSeg as released (m3d_refseg_data_prepare.py): (x, y, z) to (z, x, y), unlike Seg."""
    return Recipe((Permute((2, 0, 1)), ScaleIntensityRangePercentiles(), *_m3d_fit(size)))


def m3d(size: Size = M3D_SIZE) -> Recipe:
    """M3D's size and range with its flaws corrected, for new training and any file.

    One orientation for all sets, percentiles instead of a min-max that one metal voxel flattens,
    anti-aliasing, and masks on the image's own sampling points.
    """
    return Recipe((Orientation(), ScaleIntensityRangePercentiles(), CropForeground(), Resize(size)))


def m3d_slices(size: Size = M3D_SIZE) -> Recipe:
    """As `m3d`, for slices and arrays of which nobody knows how they lie: axes stay as they are."""
    return Recipe(m3d(size).steps[1:])


def e3d() -> Recipe:
    """E3D-GPT (arXiv 2410.14200; details from its lineage): HU -1000..1000 at 3 x 1.5 x 1.5 mm.

    128 x 256 x 256 voxels, padded with air; the crop to 112 x 224 x 224 belongs to training.
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
    """A whole CT in HU at one spacing (mm), of any size; -1024..3071 is what 12 bits can hold."""
    return Recipe((RequireUnits("HU"), Orientation(), ClipIntensity(-1024, 3071), Spacing(spacing)))


def mr(spacing: tuple[float, float, float] = (3.0, 3.0, 3.0)) -> Recipe:
    """A whole MR at one spacing (mm), of any size, scaled to 0..1 ("raw" to "unit").

    The numbers of an MR mean something only within the scan, so it is scaled by its own
    percentiles: the 99.5 rather than the maximum, which a bright vessel or an artefact sets. Empty
    margins are cropped before, for the more zeros there are, the lower that percentile falls.
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
    """Nothing: for volumes that somebody has preprocessed already, such as M3D's .npy files."""
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
