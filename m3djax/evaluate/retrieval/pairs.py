"""Pairs of volumes and texts of a split, as unit vectors."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from data_pipelines.pipeline import Source
from m3djax.contracts.evaluator import Predictions
from m3djax.contracts.units import Units, independent, region
from m3djax.evaluate.retrieval.ranking import ranks
from m3djax.evaluate.split import patients
from m3djax.models.patches import Size

DIRECTIONS = ("image_to_text", "text_to_image")
KEPT = ("record", "crop", "place", "text_id", "token_ids", "attention_mask", "report_valid")
"""Fields of the samples that are kept with their vectors."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Volumes of a split with their texts, one pair per row.

    Attributes:
      images: unit vectors of the volumes.
      texts: unit vectors of the texts.
      text_id: number of the caption, equal for equal captions.
      patient: the patient.
      record: number of the record in the split.
      crop: number of the crop within the record.
      place: voxel of the record at the centre of the crop.
      token_ids: token ids of the caption.
      attention_mask: True at tokens, False in padding.
      middle: small middle axial slice of the volume, 0..255.
      size: size of a crop in voxels along (D, H, W).
    """

    images: Float[np.ndarray, "n f"]
    texts: Float[np.ndarray, "n f"]
    text_id: Int[np.ndarray, " n"]
    patient: np.ndarray
    record: Int[np.ndarray, " n"]
    crop: Int[np.ndarray, " n"]
    place: Int[np.ndarray, "n 3"]
    token_ids: Int[np.ndarray, "n l"]
    attention_mask: Bool[np.ndarray, "n l"]
    middle: UInt8[np.ndarray, "n h w"]
    size: Size

    @classmethod
    def of(cls, predicted: Predictions, source: Source, size: Size) -> Self:
        """Makes pairs from the predictions for a split; samples without text are left out.

        Args:
          predicted: the vectors, and the fields `KEPT`.
          source: the split.
          size: size of a crop in voxels.
        """
        there = predicted["report_valid"]
        fields = {name: values[there] for name, values in predicted.items()}
        del fields["report_valid"], fields["number"]
        return cls(**fields, patient=np.array(patients(source, fields["record"]), str), size=size)

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self.text_id)

    def take(self, rows: Int[np.ndarray, " k"]) -> Self:
        """Returns some of the pairs."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        size = arrays.pop("size")
        return type(self)(**{n: a[rows] for n, a in arrays.items()}, size=size)

    def names(self) -> list[str]:
        """Returns a name for every pair, unique in the split."""
        return [f"{r}/{c}" for r, c in zip(self.record, self.crop, strict=True)]

    def units(self) -> Units:
        """Returns the units of intervals: patients, or regions of the scans of a single patient."""
        return independent(self.patient.tolist(), self.record, self.place, self.size)

    @property
    def patients(self) -> int:
        """Returns the number of patients."""
        return len(np.unique(self.patient))

    @property
    def regions(self) -> int:
        """Returns the number of regions of the scans; a region is as large as a crop."""
        return len(np.unique(np.column_stack([self.record, region(self.place, self.size)]), axis=0))

    def ranks(self) -> dict[str, Int[np.ndarray, " n"]]:
        """Returns the rank of the best right answer to every query, by direction."""
        ids = self.text_id
        sides = (self.images, self.texts), (self.texts, self.images)
        both = (ranks(*side, ids, ids) for side in sides)
        return dict(zip(DIRECTIONS, both, strict=True))
