"""Random crops of records: where and how they are cut follows from a generator alone."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines.captions import Caption, View
from data_pipelines.datasets.records import Record
from data_pipelines.errors import DataError, TextError
from data_pipelines.spatial import Size
from data_pipelines.text_fields import Text
from data_pipelines.volume import Units
from data_pipelines.windows import Window, cut

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
Part = tuple[float, float]
WHOLE: Part = (0.0, 1.0)
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

    def covers(self, size: Size) -> Size:
        """Returns the voxels along (D, H, W) that become an input of `size` voxels."""
        depth, height, width = (max(round(side * self.zoom), 1) for side in size)
        return depth, height, width


@dataclasses.dataclass(frozen=True)
class RandomCrop(grain.transforms.RandomMap):
    """A record to one sample: where and how it is cut follows from the generator alone.

    Attributes:
      size: voxels along (D, H, W) of the sample.
      crops: the recipes to choose from.
      units: what the records must hold.
      text: what is said of a sample, or None.
      names: {label value: name} of the records' masks, for the text.
      part: share of every volume along D that is cut from; see `Source`.
    """

    size: Size
    crops: tuple[Crop, ...]
    units: Units = "HU"
    text: Text | None = None
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    part: Part = WHOLE

    def random_map(self, record: Record, rng: np.random.Generator, *, train: bool = True) -> Batch:
        """Cuts one crop, in the record's dtype; a record in other units is a DataError.

        Args:
          record: see `data_pipelines.datasets.records`.
          rng: decides everything.
          train: choose also the wording and, of long reports, the sentences; a text that the
            tokenizer cannot use is left out, and a warning names it. If not, that is a TextError,
            and the sample also tells its `place`: int32 (3,), the voxel of the record in the
            crop's middle.
        """
        return self.look(record, rng, train=train)[0]

    def look(
        self, record: Record, rng: np.random.Generator, *, train: bool = True
    ) -> tuple[Batch, View]:
        """What `random_map` gives, and the crop as sources of text see it."""
        check_units(record, self.units)
        weights = np.array([crop.weight for crop in self.crops])
        crop = self.crops[rng.choice(len(self.crops), p=weights / weights.sum())]
        wanted = crop.covers(self.size)
        wording = rng if train else None
        window, view, caption = self._told(record, wanted, rng, wording)
        patch = cut(record["image"], window, self.size, record["low"])
        spacing = record["spacing"] * np.array(wanted) / np.array(self.size)
        words = self._words(record, caption, wording)
        where = {} if train else {"place": np.array(window.middle, np.int32)}
        sample = {
            "image": patch[..., None],
            "scale": record["scale"],
            "offset": record["offset"],
            "spacing": spacing.astype(np.float32),
            **words,
            **where,
        }
        return sample, view

    def _words(
        self, record: Record, caption: Caption | None, wording: np.random.Generator | None
    ) -> dict[str, np.ndarray]:
        """The fields of the text, if there is any."""
        if self.text is None:
            return {}
        try:
            return self.text.fields(record, caption, wording)
        except TextError as error:
            if wording is None:
                raise
            # A single text among many must not end a training that has run for days.
            _warn_once(f"{error} It is left out: its volume is seen without a text.")
            return self.text.fields(record, None, wording)

    def _told(
        self,
        record: Record,
        wanted: Sequence[int],
        rng: np.random.Generator,
        wording: np.random.Generator | None,
    ) -> tuple[Window, View, Caption | None]:
        """A window and what is said of it; of several the first that there is something to say."""
        shape = record["image"].shape
        window = place(shape, wanted, rng, self.part)
        if self.text is None:
            return window, View(record, None, self.names), None
        if not self.text.source.needs_mask:
            view = View(record, None, self.names)
            return window, view, self.text.source(view, wording)
        others = Places(record, tuple(wanted), self.part)
        for attempt in range(_TRIES):
            if attempt:
                window = place(shape, wanted, rng, self.part)
            view = View(record, window.of(record["mask"], 0), self.names, others)
            if caption := self.text.source(view, wording):
                break
        return window, view, caption


@functools.lru_cache(1 << 12)
def _warn_once(message: str) -> None:
    """Of threads that meet here, each may warn."""
    log.warning(message)


def check_units(record: Record, units: Units) -> None:
    """Raises DataError if the record's values are not in these units."""
    if record["units"] != units:
        raise DataError(
            record["source"],
            f"holds {record['units']!r} values, and the config is made for {units!r}",
            "set data.units and the task's window for them, or prepare it with another recipe",
        )


def place(
    shape: Sequence[int], size: Sequence[int], rng: np.random.Generator, part: Part = WHOLE
) -> Window:
    """A window of `size` at a uniformly random place; where the volume is smaller, it lies at a
    random place in the window.

    Args:
      shape: voxels of the volume.
      size: voxels of the window.
      rng: chooses the place.
      part: share of the volume along D that counts; what lies beyond it is not looked at.
    """
    slices, pads = [], []
    ends = ([round(end * shape[0]) for end in part], *((0, side) for side in shape[1:]))
    for (low, high), want in zip(ends, size, strict=True):
        have = high - low
        start = int(rng.integers(abs(have - want) + 1))
        slices.append(slice(low + start, low + start + want) if have > want else slice(low, high))
        pads.append((start, want - have - start) if have < want else (0, 0))
    return Window(tuple(slices), tuple(pads))


@dataclasses.dataclass(frozen=True)
class Places:
    """Label maps of crops at random places of a record; see `captions.Looks`.

    Attributes:
      record: the record.
      size: voxels of a crop.
      part: see `Source`.
    """

    record: Record
    size: tuple[int, ...]
    part: Part = WHOLE

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """See `captions.Looks`."""
        mask = self.record["mask"]
        return place(mask.shape, self.size, rng, self.part).of(mask, 0)

    def key(self) -> tuple[Any, ...]:
        """See `captions.Looks`."""
        return self.record["source"], self.record["study_id"], self.size, self.part
