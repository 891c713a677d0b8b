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
from typing import Annotated

import grain
import numpy as np
import tyro
from absl import flags

from data_pipelines.captions import View
from data_pipelines.crops import WHOLE, Batch, Crop, Part, RandomCrop, check_units
from data_pipelines.datasets import RecordSource, open_dataset
from data_pipelines.datasets.cached import CachedRecords
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.spatial import Size
from data_pipelines.specs import ArraySpec
from data_pipelines.text_fields import Text
from data_pipelines.volume import Units

LOADING = ("workers", "buffer", "cache_gb")
"""Fields of `Data` that change how fast samples are loaded, and no sample."""
_SHUFFLED_AT_LEAST = 1 << 10
_ENDLESS = 1 << 40


@dataclasses.dataclass(frozen=True)
class Source:
    """One prepared dataset in the mixture.

    Attributes:
      path: folder that `run.py prepare` wrote.
      split: split to read; also one that overlaps others.
      weight: relative frequency in the mixture.
      part: share of every volume along D that crops are cut from, 0 at one end and 1 at the other
        (feet and head where the axes are known): the rest can be held back. Parts that do not
        overlap share no voxel.
    """

    path: str
    split: str = "train"
    weight: float = 1.0
    part: Part = WHOLE

    def __post_init__(self) -> None:
        low, high = self.part
        if not 0 <= low < high <= 1:
            raise ConfigError(f"part={self.part} must rise, and lie between 0 and 1.")


@dataclasses.dataclass(frozen=True)
class Data:
    """Random crops from a weighted mixture of datasets and crop recipes.

    Attributes:
      sources: the mixture.
      size: voxels along (D, H, W) of the network's input; smaller volumes are padded with air.
      batch_size: over all processes.
      units: what the records must hold, as the task's window is made for it.
      crops: how crops are cut.
      text: what is said of a sample, as tokens; None for no text.
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
    # With a default there is nothing to choose: its fields are flags like all others.
    text: Annotated[Text | None, tyro.conf.AvoidSubcommands] = None
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
            **(self.text.spec(b) if self.text else {}),
        }

    def check(self) -> None:
        """Reads a record of every source, so that what is missing is found before compilation.

        Raises:
          DataError: a source is not a whole dataset, or has no records, or the tokenizer is
            unusable.
          ConfigError: the text speaks of labels that the dataset does not have.
        """
        if self.text is not None:
            self.text.tokens.check()
        for source in self.sources:
            record = self._records(source)[0]
            check_units(record, self.units)
            self._crop(source).random_map(record, np.random.default_rng(0), train=False)

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
        yield from self._stream(self._samples(seed), rows, start, _ENDLESS)

    def examine(
        self,
        source: Source,
        crops: int = 1,
        seed: int = 0,
        rows: Sequence[int] | None = None,
    ) -> Generator[Batch, None, None]:
        """Yields one pass over a split, in the order of its records, the same every time.

        Batches have the fields of `spec`, with texts in fixed wording, and
          record: (b,) int32 number of the record in the split;
          crop: (b,) int32 number of the crop of the record;
          place: (b, 3) int32 voxel of the record in the middle of the crop;
          counts: (b,) False in rows that fill up the last batch.

        Args:
          source: what to read.
          crops: crops of each record, one after the other.
          seed: where they are cut; volumes of the network's size are taken whole.
          rows: see `batches`.

        Raises:
          DataError: the source is not a whole dataset, or has no records.
        """
        records, cut = self._cached(source), self._crop(source)
        count = len(records) * crops

        def sample(number: int) -> Batch:
            record, crop = divmod(number % count, crops)
            rng = np.random.default_rng((seed, record, crop))
            return {
                **cut.random_map(records[record], rng, train=False),
                "record": np.array(record, np.int32),
                "crop": np.array(crop, np.int32),
                "counts": np.array(number < count),
            }

        batches = -(-count // self.batch_size)
        samples = grain.MapDataset.range(batches * self.batch_size).map(sample)
        yield from self._stream(samples, rows, 0, batches)

    def views(
        self, source: Source, crops: int = 1, seed: int = 0, part: slice = slice(None)
    ) -> Generator[tuple[Batch, View], None, None]:
        """Yields the crops of `examine` one by one, each with the view that questions come from.

        Args:
          source: see `examine`, as for the rest.
          crops: see there.
          seed: see there.
          part: which crops to yield, by their number among all crops.

        Raises:
          DataError: the source is not a whole dataset, or has no records.
        """
        records, cut = self._cached(source), self._crop(source)
        for number in range(len(records) * crops)[part]:
            record, crop = divmod(number, crops)
            rng = np.random.default_rng((seed, record, crop))
            sample, view = cut.look(records[record], rng, train=False)
            yield {**sample, "record": np.array(record, np.int32), "crop": np.array(crop)}, view

    def _stream(
        self, samples: grain.MapDataset, rows: Sequence[int] | None, start: int, end: int
    ) -> Generator[Batch, None, None]:
        """Reads ahead, in threads or worker processes; closes them when it is closed."""
        rows = tuple(range(self.batch_size)) if rows is None else tuple(rows)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS(sys.argv[:1])  # Grain reads absl flags, and fails if nobody parsed them
        pick = _Pick(samples, rows, self.batch_size)
        dataset = grain.MapDataset.range(start * len(rows), end * len(rows)).map(pick)
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
        members = []
        for number, source in enumerate(self.sources):
            records = self._cached(source)
            dataset = grain.MapDataset.source(records).seed(seed + 7919 * number)
            # Every epoch is a pass in a new order. Grain's shuffle takes milliseconds per index
            # below a thousand elements, so small datasets are shuffled several copies at a time.
            copies = -(-_SHUFFLED_AT_LEAST // len(records))
            dataset = dataset.repeat(copies).shuffle().repeat(None)
            members.append(dataset.random_map(self._crop(source)))
        return grain.MapDataset.mix(members, [source.weight for source in self.sources])

    def _stack(self, samples: Sequence[Batch]) -> Batch:
        """A batch in the dtypes of the spec: images that are stored as uint8 are widened here."""
        spec = self.spec()
        dtypes = {key: spec[key].dtype if key in spec else None for key in samples[0]}
        return {
            key: np.stack([sample[key] for sample in samples], dtype=dtype)
            for key, dtype in dtypes.items()
        }

    def _crop(self, source: Source) -> RandomCrop:
        names = self._records(source).mask_names if self.text else {}
        return RandomCrop(self.size, self.crops, self.units, self.text, names, source.part)

    def _cached(self, source: Source) -> CachedRecords:
        masks = self.text is not None and self.text.source.needs_mask
        return CachedRecords(self._records(source), int(self.cache_gb * 2**30), masks=masks)

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
