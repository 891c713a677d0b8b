"""The crops of a scan under random masks, as samples."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.datasets.records import Record
from m3djax.contracts.evaluator import Batch
from m3djax.contracts.share import Share
from m3djax.evaluate.tiles import Tiles
from m3djax.step import sample_keys

FIELDS = ("image", "scale", "offset", "key", "inside", "scored")
"""Fields of a batch that `fill` takes."""


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenCrops:
    """The crops of a scan with masks: all crops with a first mask, then with a second, and so on.

    Attributes:
      record: the scan.
      tiles: its crops.
      draws: number of masks per crop.
      seed: seed of the masks.
    """

    record: Record
    tiles: Tiles
    draws: int
    seed: int

    def batches(self, share: Share) -> Iterator[Batch]:
        """Yields batches of one process: the fields of `fill`, draw, patient and units."""
        yield from self._batches(share, len(self.tiles) * self.draws)

    def first_draw(self, share: Share) -> Iterator[Batch]:
        """Yields batches of the crops with their first mask."""
        yield from self._batches(share, len(self.tiles))

    def _batches(self, share: Share, count: int) -> Iterator[Batch]:
        keys = self._keys()
        for number, counts in share.batches(count):
            draw, tile = np.divmod(number, len(self.tiles))
            yield {
                "number": number,
                "counts": counts,
                "draw": draw,
                "image": self.tiles.images[tile, ..., None],
                "inside": self.tiles.inside[tile],
                "scored": self.tiles.first[tile],
                "key": keys[number],
                "scale": np.full(len(number), self.record["scale"], np.float32),
                "offset": np.full(len(number), self.record["offset"], np.float32),
                "patient": np.full(len(number), self.record["patient_id"]),
                "units": np.full(len(number), self.record["units"]),
            }

    def _keys(self) -> np.ndarray:
        """Returns the raw random key of every sample."""
        # From the study's name, so that its masks do not depend on the other studies.
        name = zlib.crc32(self.record["study_id"].encode())
        count = len(self.tiles) * self.draws
        keys = sample_keys(jax.random.key(self.seed), jnp.uint32(name), count)
        return np.asarray(jax.random.key_data(keys))
