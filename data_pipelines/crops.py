"""Random crops of records: where and how they are cut follows from a generator alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from data_pipelines.datasets.codec import LazyArray
from data_pipelines.datasets.records import Record
from data_pipelines.errors import DataError
from data_pipelines.resample import linear
from data_pipelines.volume import Units

Batch = dict[str, np.ndarray]
Size = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Crop:
    """One way to cut the network's input out of a volume.

    Attributes:
      zoom: the crop covers `zoom` times the input's voxels along each axis and is then resized.
      weight: relative frequency among the crops.
    """

    zoom: float = 1.0
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class RandomCrop(grain.transforms.RandomMap):
    """A record to one sample: where and how it is cut follows from the generator alone.

    Attributes:
      size: voxels along (D, H, W) of the sample.
      crops: the recipes to choose from.
      units: what the records must hold.
    """

    size: Size
    crops: tuple[Crop, ...]
    units: Units = "HU"

    def random_map(self, record: Record, rng: np.random.Generator) -> Batch:
        """Cuts one crop, in the record's dtype; a record in other units is a DataError."""
        check_units(record, self.units)
        weights = np.array([crop.weight for crop in self.crops])
        crop = self.crops[rng.choice(len(self.crops), p=weights / weights.sum())]
        wanted = tuple(max(round(side * crop.zoom), 1) for side in self.size)
        patch = random_window(record["image"], wanted, rng, record["low"])
        if wanted != self.size:
            patch = np.rint(resize(patch, self.size)).astype(np.int16)
        spacing = record["spacing"] * np.array(wanted) / np.array(self.size)
        return {
            "image": patch[..., None],
            "scale": record["scale"],
            "offset": record["offset"],
            "spacing": spacing.astype(np.float32),
        }


def check_units(record: Record, units: Units) -> None:
    """Raises DataError if the record's values are not in these units."""
    if record["units"] != units:
        raise DataError(
            record["source"],
            f"holds {record['units']!r} values, and the config is made for {units!r}",
            "set data.units and the task's window for them, or prepare it with another recipe",
        )


def random_window(
    image: np.ndarray | LazyArray, size: Sequence[int], rng: np.random.Generator, low: int
) -> np.ndarray:
    """A window of `size` at a uniformly random place; where the image is smaller, it lies at a
    random place in the window and `low` (air) fills the rest.
    """
    slices, pads = [], []
    for have, want in zip(image.shape, size, strict=True):
        start = int(rng.integers(abs(have - want) + 1))
        slices.append(slice(start, start + want) if have > want else slice(None))
        pads.append((start, want - have - start) if have < want else (0, 0))
    window = image[tuple(slices)]
    return np.pad(window, pads, constant_values=low) if any(map(any, pads)) else window


def resize(image: np.ndarray, size: Size) -> np.ndarray:
    """The whole image on a grid of `size` voxels, linear and without aliasing, in float32."""
    step = np.array(image.shape) / np.array(size)
    return linear(image, size, (step - 1) / 2, step, anti_alias=True)
