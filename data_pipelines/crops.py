"""Random crops of records. A crop depends only on the record and the random generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.caption import Caption
from data_pipelines.captions import CaptionSource, View
from data_pipelines.datasets.records import Record
from data_pipelines.errors import DataError
from data_pipelines.fields.base import Field, Sample
from data_pipelines.fields.text import Text
from data_pipelines.placement import WHOLE, Ground, Part, PlacedCropMasks, Placement, Uniform
from data_pipelines.spatial import Size
from data_pipelines.stream import Arrays
from data_pipelines.volume import Units
from data_pipelines.windows import Window

_TRIES = 8
"""Maximum number of windows tried until one has a caption."""


@dataclasses.dataclass(frozen=True)
class Crop:
    """A recipe to cut a sample out of a volume.

    Attributes:
      zoom: the crop covers `zoom` times the sample's voxels along each axis and is then resized
        to the sample; `Whole` ignores it.
      weight: relative frequency of this recipe among all crops.
      at: placement of the crops in the volume.
    """

    zoom: float = 1.0
    weight: float = 1.0
    at: Placement = Uniform()

    def covers(self, size: Size) -> Size:
        """Returns the voxels of the crop along (D, H, W) for a sample of `size` voxels."""
        depth, height, width = (max(round(side * self.zoom), 1) for side in size)
        return depth, height, width


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A random map, in Grain's sense, from a record to one sample.

    The generator makes every random choice.

    Attributes:
      size: voxels along (D, H, W) of the sample.
      crops: the recipes to choose from.
      fields: {name: field}; each field makes arrays of the crop.
      units: units that the records must have.
      names: {label value: name} of the records' masks.
      label_names: names of the entries of the records' `labels`.
      part: part of every volume along D that crops are cut from; see `Source`.
    """

    size: Size
    crops: tuple[Crop, ...]
    fields: Mapping[str, Field]
    units: Units = "HU"
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    label_names: Sequence[str] = ()
    part: Part = WHOLE

    def __call__(self, record: Record, rng: np.random.Generator, *, train: bool = True) -> Arrays:
        """Returns the arrays of one crop, with images in the record's dtype.

        Args:
          record: see `data_pipelines.datasets.records`.
          rng: makes every random choice.
          train: also make the fields' choices at random, such as the wording of a text and the
            sentences taken from a long text. If False, fields make the same choices every time,
            and the sample also has `place`: int32 (3,), the record's voxel in the crop's middle.

        Raises:
          DataError: the record has other units.
          TextError: the tokenizer cannot use a text, if `train` is False.
        """
        return self.with_view(record, rng, train=train)[0]

    def with_view(
        self, record: Record, rng: np.random.Generator, *, train: bool = True
    ) -> tuple[Arrays, View]:
        """Returns the arrays that a call returns, and the view of the crop for text sources."""
        check_units(record, self.units)
        weights = np.array([crop.weight for crop in self.crops])
        crop = self.crops[rng.choice(len(self.crops), p=weights / weights.sum())]
        wording = rng if train else None
        window, view, caption = self._told(record, crop, rng, wording)
        sample = Sample(record, window, self.size, self.names, self.label_names, caption, wording)
        arrays: Arrays = {}
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
        """Returns a window, its view and its caption.

        If captions depend on the mask, up to `_TRIES` windows are drawn until one has a caption.
        """
        ground = Ground(record, self.names, self.part)
        wanted = crop.covers(self.size)
        window, source = crop.at(ground, wanted, rng), self._source
        if source is None or not source.needs_mask:
            view = View(record, None, self.names)
            return window, view, source(view, wording) if source else None
        others = PlacedCropMasks(ground, wanted, crop.at)
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
    """Raises DataError if the record does not have these units."""
    if record["units"] != units:
        raise DataError(
            record["source"],
            f"has values in {record['units']!r}, but the config expects {units!r}",
            "set data.units and the task's window for them, or prepare it with another recipe",
        )
