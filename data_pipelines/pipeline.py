"""The input pipeline: batch n is a pure function of (seed, n).

A batch does not depend on the number of workers, processes or accelerators, so a run resumes at
step n with batch n. Workers read records and cut crops. The crops go to the device as integers;
windows and augmentation are applied there, inside the compiled step.

Grain takes a second to import and a config does not need it, so it is imported where batches are
made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from data_pipelines import stream
from data_pipelines.captions import View
from data_pipelines.crops import Crop, RandomCrop, check_units
from data_pipelines.datasets import open_dataset
from data_pipelines.datasets.cached import CachedRecords
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.fields.base import Field, Spatial
from data_pipelines.fields.image import Image
from data_pipelines.placement import WHOLE, Part
from data_pipelines.spatial import Size
from data_pipelines.specs import ArraySpec
from data_pipelines.stream import Arrays
from data_pipelines.volume import Units

if TYPE_CHECKING:
    import grain

    from data_pipelines.datasets import RecordSource

LOADING = ("workers", "buffer", "cache_gb")
"""Fields of `Data` that change the speed of loading but not the samples."""
_SHUFFLED_AT_LEAST = 1 << 10
_ENDLESS = 1 << 40
FieldT = TypeVar("FieldT", bound=Field)


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared dataset in the mixture.

    Attributes:
      path: folder that the command `prepare` wrote.
      split: split to read; it may overlap with other splits.
      weight: relative frequency in the mixture.
      part: part of every volume along D that crops are cut from, from 0 at one end to 1 at the
        other (feet and head if the axes are known). The rest can be held out. Parts that do not
        overlap share no voxel.
    """

    path: str
    split: str = "train"
    weight: float = 1.0
    part: Part = WHOLE

    def __post_init__(self) -> None:
        low, high = self.part
        if not 0 <= low < high <= 1:
            raise ConfigError(f"part={self.part} must be (low, high) with 0 <= low < high <= 1.")


@dataclasses.dataclass(frozen=True)
class Data:
    """The training data: random crops from a weighted mixture of datasets and crop recipes.

    Attributes:
      sources: datasets in the mixture.
      size: voxels along (D, H, W) of a sample; smaller volumes are padded with air.
      batch_size: samples in a batch, summed over all processes.
      units: units that the records must have, because the task's window is made for them.
      crops: crop recipes in the mixture.
      fields: {name: field}; the fields make the arrays of a batch. Voxels that no field needs are
        not decoded.
      workers: number of processes that read records and cut crops. 0 uses threads of this process,
        which is faster on a few cores, because batches are not sent between processes.
      buffer: number of batches that each worker makes in advance.
      cache_gb: memory per worker and source for decoded volumes. Small datasets are then decoded
        only once. Volumes too large to be stored whole are read again for each crop.
    """

    sources: tuple[Source, ...]
    size: Size = (112, 224, 224)
    batch_size: int = 8
    units: Units = "HU"
    crops: tuple[Crop, ...] = (Crop(),)
    fields: Mapping[str, Field] = dataclasses.field(default_factory=lambda: {"image": Image()})
    workers: int = 0
    buffer: int = 4
    cache_gb: float = 1.0

    def __post_init__(self) -> None:
        weights = [s.weight for s in self.sources] + [c.weight for c in self.crops]
        if not self.sources or not self.crops or min(weights) <= 0:
            raise ConfigError("sources and crops must not be empty, and weights must be positive.")
        if self.batch_size < 1 or min(self.size) < 1:
            raise ConfigError("batch_size and size must be positive.")
        self._check_fields()

    def _check_fields(self) -> None:
        made: dict[str, str] = {}
        for name, field in self.fields.items():
            for array in field.spec(name, self.size):
                if array in made:
                    raise ConfigError(
                        f"the fields {made[array]!r} and {name!r} both make the array {array!r}. "
                        "Cure: leave one of them out, or give it another name."
                    )
                made[array] = name
        if not made:
            raise ConfigError('fields is empty. Cure: fields={"image": Image()}.')

    def field(self, name: str, kind: type[FieldT]) -> FieldT:
        """Returns the field of this name and class.

        Args:
          name: name of the field.
          kind: class of the field.

        Raises:
          ConfigError: there is no field of this name, or its class is another one.
        """
        found = self.find(name, kind)
        if found is None:
            has = ", ".join(f"{key!r} ({type(f).__name__})" for key, f in self.fields.items())
            raise ConfigError(
                f"the data has no field {name!r} of the class {kind.__name__}; it has {has}. "
                f"Cure: add {name!r}: {kind.__name__}(...) to data.fields."
            )
        return found

    def find(self, name: str, kind: type[FieldT]) -> FieldT | None:
        """Returns the field of this name if it is of this class, else None."""
        found = self.fields.get(name)
        return found if isinstance(found, kind) else None

    def with_fields(self, **fields: Field) -> Data:
        """Returns a copy with these fields added; a field with an existing name is replaced."""
        return dataclasses.replace(self, fields={**self.fields, **fields})

    def spec(self) -> dict[str, ArraySpec]:
        """Returns shapes and dtypes of a batch, without reading any data."""
        return {
            array: ArraySpec((self.batch_size, *spec.shape), spec.dtype)
            for name, field in self.fields.items()
            for array, spec in field.spec(name, self.size).items()
        }

    def spatial(self) -> dict[str, Spatial]:
        """Returns {array name: how the array changes when the sample is flipped or rotated}."""
        return {
            array: spatial
            for name, field in self.fields.items()
            for array, spatial in field.spatial(name).items()
        }

    def check(self) -> None:
        """Reads one record of every source, so that missing data is found before compilation.

        Raises:
          DataError: a source is incomplete or has no records, or the tokenizer is unusable.
          ConfigError: a field or a placement names labels or points that no dataset has.
        """
        for source, records in zip(self.sources, self._opened(), strict=True):
            record = records[0]
            check_units(record, self.units)
            self._crop(source, records)(record, np.random.default_rng(0), train=False)

    def batches(
        self, seed: int, start: int = 0, rows: Sequence[int] | None = None
    ) -> Generator[Arrays, None, None]:
        """Yields batches `start`, `start + 1`, ... without end.

        Close the generator to stop the workers.

        Args:
          seed: seed of shuffling and crops.
          start: number of the first batch.
          rows: rows of every batch to make, those of this process's devices; None for all.

        Raises:
          DataError: a source is incomplete or has no records, or the tokenizer is unusable.
          ConfigError: see `check`.
        """
        yield from self._stream(self._samples(seed), rows, start, _ENDLESS)

    def eval_batches(
        self,
        source: Source,
        crops: int = 1,
        seed: int = 0,
        rows: Sequence[int] | None = None,
    ) -> Generator[Arrays, None, None]:
        """Yields the batches of one pass over a split, the same ones in the same order every time.

        Batches have the arrays of `spec`, with texts in fixed wording, and also
          record: (b,) int32 number of the record in the split;
          crop: (b,) int32 number of the crop of the record;
          place: (b, 3) int32 voxel of the record in the middle of the crop;
          counts: (b,) bool, False in rows that only fill up the last batch.

        Args:
          source: dataset and split to read.
          crops: number of consecutive crops of each record.
          seed: seed of the crops' positions; volumes of the network's size are taken whole.
          rows: see `batches`.

        Raises:
          DataError: the source is incomplete or has no records.
        """
        import grain

        opened = self._records(source)
        records, cut = self._cached(opened), self._crop(source, opened)
        count = len(records) * crops

        def sample(number: int) -> Arrays:
            record, crop = divmod(number % count, crops)
            rng = np.random.default_rng((seed, record, crop))
            return {
                **cut(records[record], rng, train=False),
                "record": np.array(record, np.int32),
                "crop": np.array(crop, np.int32),
                "counts": np.array(number < count),
            }

        batches = -(-count // self.batch_size)
        samples = grain.MapDataset.range(batches * self.batch_size).map(sample)
        yield from self._stream(samples, rows, 0, batches)

    def eval_crops(
        self, source: Source, crops: int = 1, seed: int = 0, part: slice = slice(None)
    ) -> Generator[tuple[Arrays, View], None, None]:
        """Yields the crops of `eval_batches` one by one, each with the view for questions.

        Args:
          source: see `eval_batches`.
          crops: see `eval_batches`.
          seed: see `eval_batches`.
          part: slice of the sequence of all crops; only these are yielded.

        Raises:
          DataError: the source is incomplete or has no records.
        """
        opened = self._records(source)
        records, cut = self._cached(opened), self._crop(source, opened)
        for number in range(len(records) * crops)[part]:
            record, crop = divmod(number, crops)
            rng = np.random.default_rng((seed, record, crop))
            sample, view = cut.with_view(records[record], rng, train=False)
            yield {**sample, "record": np.array(record, np.int32), "crop": np.array(crop)}, view

    def _stream(
        self, samples: grain.MapDataset, rows: Sequence[int] | None, start: int, end: int
    ) -> Generator[Arrays, None, None]:
        """Returns batches `start` to `end` (exclusive), made in advance; see `stream.batches`."""
        rows = tuple(range(self.batch_size)) if rows is None else tuple(rows)
        picked = stream.Rows(samples, rows, self.batch_size)
        return stream.batches(picked, start, end, self._stack, self.workers, self.buffer)

    def _samples(self, seed: int) -> grain.MapDataset:
        """Returns the endless sequence of samples.

        Every random choice is tied to the sample's number before samples go to different workers.
        """
        import grain

        members = []
        for number, (source, records) in enumerate(zip(self.sources, self._opened(), strict=True)):
            dataset = grain.MapDataset.source(self._cached(records)).seed(seed + 7919 * number)
            # Every epoch has a new order. Below a thousand elements, Grain's shuffle takes
            # milliseconds per index, so several copies of a small dataset are shuffled together.
            copies = -(-_SHUFFLED_AT_LEAST // len(records))
            dataset = dataset.repeat(copies).shuffle().repeat(None)
            members.append(dataset.random_map(self._crop(source, records)))
        return grain.MapDataset.mix(members, [source.weight for source in self.sources])

    def _stack(self, samples: Sequence[Arrays]) -> Arrays:
        """Returns a batch in the dtypes of the spec; images stored as uint8 are widened here."""
        spec = self.spec()
        dtypes = {key: spec[key].dtype if key in spec else None for key in samples[0]}
        return {
            key: np.stack([sample[key] for sample in samples], dtype=dtype)
            for key, dtype in dtypes.items()
        }

    def _crop(self, source: Source, records: RecordSource) -> RandomCrop:
        return RandomCrop(
            self.size,
            self.crops,
            self.fields,
            self.units,
            records.mask_names,
            records.label_names,
            source.part,
        )

    def _cached(self, records: RecordSource) -> CachedRecords:
        fields, crops = self.fields.values(), self.crops
        return CachedRecords(
            records,
            int(self.cache_gb * 2**30),
            images=any(field.needs_image for field in fields),
            masks=any(f.needs_mask for f in fields) or any(c.at.needs_mask for c in crops),
        )

    def _opened(self) -> list[RecordSource]:
        """Opens all sources, and checks the names in fields and placements against them."""
        opened = [self._records(source) for source in self.sources]
        for name, field in self.fields.items():
            field.check_fields(name, self.fields)
            field.check(name, opened)
        for number, crop in enumerate(self.crops):
            crop.at.check(f"data.crops.{number}.at", opened)
        return opened

    def _records(self, source: Source) -> RecordSource:
        records = open_dataset(source.path, source.split, lazy=True)
        if not len(records):
            raise DataError(source.path, f"split {source.split!r} is empty", "prepare more scans")
        return records
