"""Random crops of records: where and how they are cut follows from a generator alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from data_pipelines.captions import Caption, View
from data_pipelines.datasets.codec import LazyArray
from data_pipelines.datasets.records import Record
from data_pipelines.errors import DataError
from data_pipelines.resample import linear
from data_pipelines.text_fields import Text
from data_pipelines.volume import Units

Batch = dict[str, np.ndarray]
Size = tuple[int, int, int]
_TRIES = 8
"""Crops that are looked at for one that shows something to speak of."""


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
      text: what is said of a sample, or None.
      names: {label value: name} of the records' masks, for the text.
    """

    size: Size
    crops: tuple[Crop, ...]
    units: Units = "HU"
    text: Text | None = None
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def random_map(self, record: Record, rng: np.random.Generator, *, train: bool = True) -> Batch:
        """Cuts one crop, in the record's dtype; a record in other units is a DataError.

        Args:
          record: see `data_pipelines.datasets.records`.
          rng: decides everything.
          train: choose also the wording and, of long reports, the sentences.
        """
        check_units(record, self.units)
        weights = np.array([crop.weight for crop in self.crops])
        crop = self.crops[rng.choice(len(self.crops), p=weights / weights.sum())]
        wanted = tuple(max(round(side * crop.zoom), 1) for side in self.size)
        wording = rng if train else None
        window, caption = self._told(record, wanted, rng, wording)
        patch = window.of(record["image"], record["low"])
        if wanted != self.size:
            patch = np.rint(resize(patch, self.size)).astype(np.int16)
        spacing = record["spacing"] * np.array(wanted) / np.array(self.size)
        words = {} if self.text is None else self.text.fields(record, caption, wording)
        return {
            "image": patch[..., None],
            "scale": record["scale"],
            "offset": record["offset"],
            "spacing": spacing.astype(np.float32),
            **words,
        }

    def _told(
        self,
        record: Record,
        wanted: Sequence[int],
        rng: np.random.Generator,
        wording: np.random.Generator | None,
    ) -> tuple[Window, Caption | None]:
        """A window and what is said of it; of several the first that there is something to say."""
        window, shape = place(record["image"].shape, wanted, rng), record["image"].shape
        if self.text is None:
            return window, None
        if not self.text.source.needs_mask:
            return window, self.text.source(View(record, None, self.names), wording)
        for _ in range(_TRIES):
            view = View(record, window.of(record["mask"], 0), self.names)
            if caption := self.text.source(view, wording):
                return window, caption
            window = place(shape, wanted, rng)
        return window, None


def check_units(record: Record, units: Units) -> None:
    """Raises DataError if the record's values are not in these units."""
    if record["units"] != units:
        raise DataError(
            record["source"],
            f"holds {record['units']!r} values, and the config is made for {units!r}",
            "set data.units and the task's window for them, or prepare it with another recipe",
        )


@dataclasses.dataclass(frozen=True)
class Window:
    """Where a crop lies.

    Attributes:
      slices: of the volume, along (D, H, W).
      pads: voxels before and after them that lie outside of the volume.
    """

    slices: tuple[slice, ...]
    pads: tuple[tuple[int, int], ...]

    def of(self, volume: np.ndarray | LazyArray, fill: int) -> np.ndarray:
        """The voxels of a volume there; `fill` outside of it."""
        window = volume[self.slices]
        if not any(map(any, self.pads)):
            return window
        return np.pad(window, self.pads, constant_values=fill)


def place(shape: Sequence[int], size: Sequence[int], rng: np.random.Generator) -> Window:
    """A window of `size` at a uniformly random place; where the volume is smaller, it lies at a
    random place in the window.
    """
    slices, pads = [], []
    for have, want in zip(shape, size, strict=True):
        start = int(rng.integers(abs(have - want) + 1))
        slices.append(slice(start, start + want) if have > want else slice(None))
        pads.append((start, want - have - start) if have < want else (0, 0))
    return Window(tuple(slices), tuple(pads))


def resize(image: np.ndarray, size: Size) -> np.ndarray:
    """The whole image on a grid of `size` voxels, linear and without aliasing, in float32."""
    step = np.array(image.shape) / np.array(size)
    return linear(image, size, (step - 1) / 2, step, anti_alias=True)
