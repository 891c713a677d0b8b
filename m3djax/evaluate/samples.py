"""Crops of a split as samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from data_pipelines.pipeline import Data, Source
from m3djax.contracts.evaluator import Batch
from m3djax.contracts.share import Share


@dataclasses.dataclass(frozen=True, eq=False)
class Crops:
    """The crops of a split, in the order of its records.

    Attributes:
      data: config of the crops.
      source: dataset, split and part.
      crops: crops per record.
      seed: seed of the places of crops.
    """

    data: Data
    source: Source
    crops: int = 1
    seed: int = 0

    def batches(self, share: Share) -> Iterator[Batch]:
        """Yields batches of one process, with the fields of `Data.eval_batches`."""
        data = dataclasses.replace(self.data, batch_size=share.batch_size * share.processes)
        for batch in data.eval_batches(self.source, self.crops, self.seed, share.rows):
            yield batch | {"number": batch["record"] * self.crops + batch["crop"]}
