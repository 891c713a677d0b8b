"""The input pipeline: batch n is a pure function of (seed, n).

It does not depend on the number of workers, processes or accelerators, so a run resumes at step
n by asking for batch n. Workers read records and cut crops; integers go to the device, where
windows and augmentation are applied inside the compiled step.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Generator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from data_pipelines.datasets import RecordSource, open_dataset
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.resample import linear
from data_pipelines.volume import Units

Batch = dict[str, np.ndarray]
Size = tuple[int, int, int]
_SHUFFLED_AT_LEAST = 1 << 10


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
class Crop:
    """One way to cut the network's input out of a volume.

    Attributes:
      zoom: the crop covers `zoom` times the input's voxels along each axis and is then resized.
      weight: relative frequency among the crops.
    """

    zoom: float = 1.0
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
      workers: processes that read and cut; 0 does so in threads of this one.
      buffer: batches that are made ahead, per worker.
      cache_gb: memory per worker for decoded volumes, so that small datasets are decoded once.
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
        self, seed: int, start: int = 0, shard: int = 0, shards: int = 1
    ) -> Generator[Batch, None, None]:
        """Yields batches `start`, `start + 1`, ... without end; close it to stop the workers.

        Args:
          seed: of shuffling and crops.
          start: number of the first batch.
          shard: which part of every batch to make: that of this process's devices.
          shards: parts that a batch is made in.

        Raises:
          DataError: a source is not a whole dataset, or has no records.
          ValueError: `shards` does not divide the batch.
        """
        if self.batch_size % shards:
            raise ConfigError(f"batch_size={self.batch_size} cannot be split over {shards} shards.")
        if not flags.FLAGS.is_parsed():
            flags.FLAGS(sys.argv[:1])  # Grain reads absl flags, and fails if nobody parsed them
        dataset = self._samples(seed).batch(self.batch_size // shards, drop_remainder=True)
        dataset = dataset[start * shards + shard :: shards]
        stream = dataset.to_iter_dataset(grain.ReadOptions(1, self.buffer))
        if self.workers:
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=self.buffer)
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

    def _records(self, source: Source) -> RecordSource:
        records = open_dataset(source.path, source.split)
        if not len(records):
            raise DataError(source.path, f"split {source.split!r} is empty", "prepare more scans")
        return records


class CachedRecords:
    """Records with the last used ones kept in memory.

    Args:
      records: anything with a length and items.
      limit: bytes of images and masks to keep; at least one record is kept.
    """

    def __init__(self, records: RecordSource, limit: int) -> None:
        self._records = records
        self._limit = limit
        self._kept: collections.OrderedDict[int, Any] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Any:
        record = self._kept.pop(index, None)
        if record is None:
            record = self._records[index]
        self._kept[index] = record
        while len(self._kept) > 1 and sum(map(_nbytes, list(self._kept.values()))) > self._limit:
            self._kept.popitem(last=False)
        return record

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": collections.OrderedDict()}


@dataclasses.dataclass(frozen=True)
class RandomCrop(grain.transforms.RandomMap):
    """A record to one sample: where and how it is cut follows from the generator alone.

    Attributes:
      size: voxels along (D, H, W) of the sample.
      crops: the recipes to choose from.
      units: what the records must hold.
    """

    size: Size
    crops: tuple[Crop, ...]
    units: Units = "HU"

    def random_map(self, record: dict[str, Any], rng: np.random.Generator) -> Batch:
        """Cuts one crop; a record in other units is a DataError."""
        check_units(record, self.units)
        weights = np.array([crop.weight for crop in self.crops])
        crop = self.crops[rng.choice(len(self.crops), p=weights / weights.sum())]
        wanted = tuple(max(round(side * crop.zoom), 1) for side in self.size)
        patch = random_window(record["image"], wanted, rng)
        if wanted != self.size:
            patch = np.rint(resize(patch, self.size)).astype(np.int16)
        spacing = record["spacing"] * np.array(wanted) / np.array(self.size)
        return {
            "image": patch[..., None],
            "scale": record["scale"],
            "offset": record["offset"],
            "spacing": spacing.astype(np.float32),
        }


def check_units(record: dict[str, Any], units: Units) -> None:
    """Raises DataError if the record's values are not in these units."""
    if record["units"] != units:
        raise DataError(
            record["source"],
            f"holds {record['units']!r} values, and the config is made for {units!r}",
            "set data.units and the task's window for them, or prepare it with another recipe",
        )


def random_window(image: np.ndarray, size: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """A window of `size` at a uniformly random place; where the image is smaller, it lies at a
    random place in the window and its lowest value (air) fills the rest.
    """
    slices, pads = [], []
    for have, want in zip(image.shape, size, strict=True):
        start = int(rng.integers(abs(have - want) + 1))
        slices.append(slice(start, start + want) if have > want else slice(None))
        pads.append((start, want - have - start) if have < want else (0, 0))
    window = image[tuple(slices)]
    return np.pad(window, pads, constant_values=image.min()) if any(map(any, pads)) else window


def resize(image: np.ndarray, size: Size) -> np.ndarray:
    """The whole image on a grid of `size` voxels, linear and without aliasing, in float32."""
    step = np.array(image.shape) / np.array(size)
    return linear(image, size, (step - 1) / 2, step, anti_alias=True)


def _nbytes(record: dict[str, Any]) -> int:
    return sum(value.nbytes for value in record.values() if isinstance(value, np.ndarray))
