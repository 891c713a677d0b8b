"""The input pipeline: batch n is a pure function of (seed, n).

It does not depend on the number of workers, processes or accelerators, so a run resumes at step
n by asking for batch n. Workers read records and cut crops; integers go to the device, where
windows and augmentation are applied inside the compiled step.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Generator, Sequence

import grain
import numpy as np
from absl import flags

from data_pipelines.crops import Batch, Crop, RandomCrop, Size, check_units
from data_pipelines.datasets import RecordSource, open_dataset
from data_pipelines.datasets.cached import CachedRecords
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.volume import Units

_SHUFFLED_AT_LEAST = 1 << 10
_ENDLESS = 1 << 60


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of an array that is not there yet."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Source:
    """One prepared dataset in the mixture.

    Attributes:
      path: folder that `run.py prepare` wrote.
      split: split to read.
      weight: relative frequency in the mixture.
    """

    path: str
    split: str = "train"
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Data:
    """Random crops from a weighted mixture of datasets and crop recipes.

    Attributes:
      sources: the mixture.
      size: voxels along (D, H, W) of the network's input; smaller volumes are padded with air.
      batch_size: over all processes.
      units: what the records must hold, as the task's window is made for it.
      crops: how crops are cut.
      workers: processes that read and cut; 0 does so in threads of this one, which is faster on a
        few cores, as batches need not be sent.
      buffer: batches that are made ahead, per worker.
      cache_gb: memory per worker and source for decoded volumes, so that small datasets are decoded
        once; those too large to be stored whole are read anew, crop by crop.
    """

    sources: tuple[Source, ...]
    size: Size = (112, 224, 224)
    batch_size: int = 8
    units: Units = "HU"
    crops: tuple[Crop, ...] = (Crop(),)
    workers: int = 0
    buffer: int = 4
    cache_gb: float = 1.0

    def __post_init__(self) -> None:
        weights = [s.weight for s in self.sources] + [c.weight for c in self.crops]
        if not self.sources or not self.crops or min(weights) <= 0:
            raise ConfigError("sources and crops must not be empty, and weights must be positive.")
        if self.batch_size < 1 or min(self.size) < 1:
            raise ConfigError("batch_size and size must be positive.")

    def spec(self) -> dict[str, ArraySpec]:
        """Shapes and dtypes of a batch; needs no data on disk."""
        b = self.batch_size
        return {
            "image": ArraySpec((b, *self.size, 1), np.dtype(np.int16)),
            "scale": ArraySpec((b,), np.dtype(np.float32)),
            "offset": ArraySpec((b,), np.dtype(np.float32)),
            "spacing": ArraySpec((b, 3), np.dtype(np.float32)),
        }

    def check(self) -> None:
        """Reads a record of every source, so that what is missing is found before compilation.

        Raises:
          DataError: a source is not a whole dataset, or has no records.
        """
        for source in self.sources:
            check_units(self._records(source)[0], self.units)

    def batches(
        self, seed: int, start: int = 0, rows: Sequence[int] | None = None
    ) -> Generator[Batch, None, None]:
        """Yields batches `start`, `start + 1`, ... without end; close it to stop the workers.

        Args:
          seed: of shuffling and crops.
          start: number of the first batch.
          rows: which rows of every batch to make, those of this process's devices; None for all.

        Raises:
          DataError: a source is not a whole dataset, or has no records.
        """
        rows = tuple(range(self.batch_size)) if rows is None else tuple(rows)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS(sys.argv[:1])  # Grain reads absl flags, and fails if nobody parsed them
        pick = _Pick(self._samples(seed), rows, self.batch_size)
        dataset = grain.MapDataset.range(start * len(rows), _ENDLESS).map(pick)
        dataset = dataset.batch(len(rows), drop_remainder=True, batch_fn=self._stack)
        threads = 1 if self.workers else min(os.cpu_count() or 1, self.buffer)
        stream = dataset.to_iter_dataset(grain.ReadOptions(threads, self.buffer))
        if self.workers:
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=self.buffer),
                worker_init_fn=_outlive_stop_signals,
            )
        iterator = iter(stream)
        try:
            yield from iterator
        finally:
            iterator.close()

    def _samples(self, seed: int) -> grain.MapDataset:
        """Endless samples; all randomness is tied to a sample's number before any splitting."""
        cut = RandomCrop(self.size, self.crops, self.units)
        members = []
        for number, source in enumerate(self.sources):
            records = self._records(source)
            cached = CachedRecords(records, int(self.cache_gb * 2**30))
            dataset = grain.MapDataset.source(cached).seed(seed + 7919 * number)
            # Every epoch is a pass in a new order. Grain's shuffle takes milliseconds per index
            # below a thousand elements, so small datasets are shuffled several copies at a time.
            copies = -(-_SHUFFLED_AT_LEAST // len(records))
            dataset = dataset.repeat(copies).shuffle().repeat(None)
            members.append(dataset.random_map(cut))
        return grain.MapDataset.mix(members, [source.weight for source in self.sources])

    def _stack(self, samples: Sequence[Batch]) -> Batch:
        """A batch in the dtypes of the spec: images that are stored as uint8 are widened here."""
        spec = self.spec()
        return {
            key: np.stack([sample[key] for sample in samples], dtype=spec[key].dtype)
            for key in spec
        }

    def _records(self, source: Source) -> RecordSource:
        records = open_dataset(source.path, source.split, lazy=True)
        if not len(records):
            raise DataError(source.path, f"split {source.split!r} is empty", "prepare more scans")
        return records


@dataclasses.dataclass(frozen=True)
class _Pick:
    """Counts through some rows of all batches, and takes their samples.

    Attributes:
      samples: all samples; batch n is made of `batch_size` from n x `batch_size` on.
      rows: the rows that are taken of each batch.
      batch_size: rows of a whole batch.
    """

    samples: grain.MapDataset
    rows: tuple[int, ...]
    batch_size: int

    def __call__(self, number: int) -> Batch:
        batch, row = divmod(number, len(self.rows))
        return self.samples[batch * self.batch_size + self.rows[row]]


def _outlive_stop_signals(_worker: int, _workers: int) -> None:
    """Slurm and ctrl-C signal workers too; the last step before the save needs their batch."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
