"""Crops with labelled patches, as samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from m3djax.contracts.evaluator import Batch, Predictions
from m3djax.contracts.share import Share
from m3djax.evaluate.probe.organs import LabelledPatches

FIELDS = ("image", "scale", "offset", "patch")
"""Fields of a batch that `patch_features` takes."""
KEPT = ("labelled", "organ", "block", "sample")
"""Fields of the samples that are kept with their features."""


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledCrops:
    """The crops of some records with at least one labelled patch.

    Attributes:
      parts: the patches of each record.
      organs: names of the organs, by the index in the labels.
    """

    parts: Sequence[LabelledPatches]
    organs: Sequence[str]

    def batches(self, share: Share) -> Iterator[Batch]:
        """Yields batches of one process.

        Every crop has k entries for patches, where k is the largest number of labelled patches in
        a crop. patch (b, k) is the number of the patch in the crop; labelled (b, k) is False for
        an entry without patch; organ, block and sample (b, k) are names.
        """
        crops = [(part, crop) for part in self.parts for crop in np.unique(part.crop)]
        width = int(max(np.bincount(part.crop).max(initial=0) for part in self.parts))
        for numbers, counts in share.batches(len(crops)):
            rows = [self._row(*crops[int(number)], width) for number in numbers]
            batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            yield {**batch, "number": numbers, "counts": counts}

    def _row(self, part: LabelledPatches, crop: int, width: int) -> dict[str, np.ndarray]:
        """Returns the fields of one crop, without the batch axis."""
        chosen = part.take(part.crop == crop)
        spare = width - len(chosen.row)
        patch = np.pad(chosen.row, (0, spare))
        labelled = np.arange(width) < len(chosen.row)
        study = part.record["study_id"]
        organs = [self.organs[organ] for organ in chosen.organ] + [""] * spare
        return {
            "image": part.tiles.images[crop, ..., None],
            "scale": np.array(part.record["scale"], np.float32),
            "offset": np.array(part.record["offset"], np.float32),
            "patch": patch,
            "labelled": labelled,
            "organ": np.array(organs),
            "block": np.array([*chosen.block, *[""] * spare]),
            "sample": np.array([f"{study}/{crop}/{row}" for row in patch]),
        }


def flat(predictions: Predictions, name: str) -> np.ndarray:
    """Returns a field of all labelled patches, crop after crop."""
    return predictions[name][predictions["labelled"]]
