"""Random crops of records: where and how they are cut follows from a generator alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from data_pipelines.caption import Caption
from data_pipelines.captions import CaptionSource, View
from data_pipelines.datasets.records import Record
from data_pipelines.errors import DataError
from data_pipelines.fields.base import Field, Sample
from data_pipelines.fields.text import Text
from data_pipelines.placement import WHOLE, Ground, Part, Placement, Places, Uniform
from data_pipelines.spatial import Size
from data_pipelines.stream import Batch
from data_pipelines.volume import Units
from data_pipelines.windows import Window

_TRIES = 8
"""Crops that are looked at for one that shows something to speak of."""


@dataclasses.dataclass(frozen=True)
class Crop:
    """One way to cut a sample out of a volume.

    Attributes:
      zoom: the crop covers `zoom` times the sample's voxels along each axis and is then resized;
        `Whole` does not look at it.
      weight: relative frequency among the crops.
      at: where crops lie.
    """

    zoom: float = 1.0
    weight: float = 1.0
    at: Placement = Uniform()

    def covers(self, size: Size) -> Size:
        """Returns the voxels along (D, H, W) that become a sample of `size` voxels."""
        depth, height, width = (max(round(side * self.zoom), 1) for side in size)
        return depth, height, width


@dataclasses.dataclass(frozen=True)
class RandomCrop(grain.transforms.RandomMap):
    """Turns a record into one sample; the generator makes every choice.

    Attributes:
      size: voxels along (D, H, W) of the sample.
      crops: the recipes to choose from.
      fields: what is made of the crop, by name.
      units: what the records must hold.
      names: {label value: name} of the records' masks.
      label_names: names of the entries of the records' `labels`.
      part: share of every volume along D that is cut from; see `Source`.
    """

    size: Size
    crops: tuple[Crop, ...]
    fields: Mapping[str, Field]
    units: Units = "HU"
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    label_names: Sequence[str] = ()
    part: Part = WHOLE

    def random_map(self, record: Record, rng: np.random.Generator, *, train: bool = True) -> Batch:
        """Returns the arrays of one crop, images in the record's dtype.

        Args:
          record: see `data_pipelines.datasets.records`.
          rng: makes every choice.
          train: choose also what fields leave open, such as the wording of a text and the
            sentences of a long one. If not, fields make the same choices every time, and the
            sample has also its `place`: int32 (3,), the voxel of the record in the crop's middle.

        Raises:
          DataError: the record is in other units.
          TextError: outside of training, the tokenizer cannot use a text.
        """
        return self.look(record, rng, train=train)[0]

    def look(
        self, record: Record, rng: np.random.Generator, *, train: bool = True
    ) -> tuple[Batch, View]:
        """Returns what `random_map` does, and the crop as sources of text see it."""
        check_units(record, self.units)
        weights = np.array([crop.weight for crop in self.crops])
        crop = self.crops[rng.choice(len(self.crops), p=weights / weights.sum())]
        wording = rng if train else None
        window, view, caption = self._told(record, crop, rng, wording)
        sample = Sample(record, window, self.size, self.names, self.label_names, caption, wording)
        arrays: Batch = {}
        for name, field in self.fields.items():
            arrays |= field(name, sample)
        if not train:
            arrays["place"] = np.array(window.middle, np.int32)
        return arrays, view

    def _told(
        self,
        record: Record,
        crop: Crop,
        rng: np.random.Generator,
        wording: np.random.Generator | None,
    ) -> tuple[Window, View, Caption | None]:
        """Returns a window and its caption: of several windows the first that has a caption."""
        ground = Ground(record, self.names, self.part)
        wanted = crop.covers(self.size)
        window, source = crop.at(ground, wanted, rng), self._source
        if source is None or not source.needs_mask:
            view = View(record, None, self.names)
            return window, view, source(view, wording) if source else None
        others = Places(ground, wanted, crop.at)
        for attempt in range(_TRIES):
            if attempt:
                window = crop.at(ground, wanted, rng)
            view = View(record, window.of(record["mask"], 0), self.names, others)
            if caption := source(view, wording):
                break
        return window, view, caption

    @property
    def _source(self) -> CaptionSource | None:
        return next((f.source for f in self.fields.values() if isinstance(f, Text)), None)


def check_units(record: Record, units: Units) -> None:
    """Raises DataError if the record's values are not in these units."""
    if record["units"] != units:
        raise DataError(
            record["source"],
            f"holds {record['units']!r} values, and the config is made for {units!r}",
            "set data.units and the task's window for them, or prepare it with another recipe",
        )
