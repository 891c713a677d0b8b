"""Reads records of a prepared dataset by number."""

import bisect
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from etils import epath

from data_pipelines.datasets.codec import (
    Bricked,
    LazyArray,
    ReadBricks,
    Shape,
    WholeArray,
    brick_count,
)
from data_pipelines.datasets.record_files import RecordFiles
from data_pipelines.datasets.records import Record, feature_spec
from data_pipelines.datasets.storage import BRICKS, RECORDS, file_name, stored_spec
from data_pipelines.errors import DataError
from data_pipelines.files import is_local
from data_pipelines.program import program

METADATA = "metadata.json"
STUDIES = "studies.jsonl"
"""Index of a dataset or shard: one line per study with its facts, or, in a shard, its row of the
quarantine."""
SUBSETS = "subsets.json"
"""File with {name: [[split, number of the record in it], ...]} of splits that overlap others."""
_INFO = "dataset_info.json"
_LATER = {"qa": "", "qa_valid": np.bool_(False), "points": "", "points_valid": np.bool_(False)}
"""Values of fields that are missing in datasets of earlier versions."""


class RecordSource:
    """The records of one split, by number. It can be pickled for worker processes.

    Attributes:
      path: the dataset folder.
      split: the split.
      lazy: whether `image` and `mask` are `codec.LazyArray`s of the stored dtype.
      metadata: content of `metadata.json`: recipe, patients per split, names.
    """

    def __init__(self, path: epath.PathLike, split: str, *, lazy: bool = False) -> None:
        """Opens the split; see `open_dataset`."""
        _import_tfds()
        self.path = epath.Path(path)
        self.split = split
        self.lazy = lazy
        self.metadata = read_metadata(self.path)
        self._starts = {
            name: [0, *itertools.accumulate(lengths)]
            for name, lengths in _shard_lengths(self.path).items()
        }
        self._places = None if split in self._starts else self._subset(split)
        self._spec = stored_spec(len(self.label_names))
        version = hashlib.sha256(json.dumps(self.metadata, sort_keys=True).encode())
        self._files = RecordFiles(self.path, self.metadata["files"], version.hexdigest())

    @property
    def mask_names(self) -> dict[int, str]:
        """Returns {label value: name} of the masks."""
        return {int(value): name for value, name in self.metadata["mask_names"].items()}

    @property
    def label_names(self) -> tuple[str, ...]:
        """Returns the names of the entries of `labels`."""
        return tuple(self.metadata["label_names"])

    def __len__(self) -> int:
        """Returns the number of records."""
        return self._starts[self.split][-1] if self._places is None else len(self._places)

    def __getitem__(self, index: SupportsIndex) -> Record:
        """Returns the record; see `records.feature_spec`.

        Raises:
          DataError: the record is damaged. Lazy arrays raise it later if their bricks are damaged.
          IndexError: there is no record of this number.
        """
        number = index.__index__()
        if not -len(self) <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        number %= len(self)
        place = (self.split, number) if self._places is None else self._places[number]
        starts = self._starts[place[0]]
        shard = bisect.bisect_right(starts, place[1]) - 1
        (data,) = self._read(RECORDS, place, shard, [place[1] - starts[shard]])
        stored = _parse(data, self._spec)
        bricks = functools.partial(self._read, BRICKS, place, shard)
        record = {key: stored[key] for key in feature_spec(0)} | _volumes(stored, bricks)
        if not self.lazy:
            spec = {"image": np.int16, "mask": np.uint8}
            record |= {key: np.asarray(record[key], dtype) for key, dtype in spec.items()}
        return record

    def __iter__(self) -> Iterator[Record]:
        """Yields all records in order."""
        return (self[index] for index in range(len(self)))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the state in a worker process."""
        _import_tfds()
        self.__dict__.update(state)

    def __repr__(self) -> str:
        """Returns path, split and length as text."""
        return f"RecordSource({str(self.path)!r}, {self.split!r}, {len(self)} records)"

    def _subset(self, name: str) -> list[tuple[str, int]]:
        """Returns the places of the records of an overlapping split: split and number."""
        kept = SUBSETS in self.metadata["files"]  # older datasets have none
        subsets = json.loads((self.path / SUBSETS).read_text()) if kept else {}
        if name not in subsets:
            has = ", ".join([*self._starts, *subsets])
            raise DataError(self.path, f"it has no split {name!r}", f"choose one of: {has}")
        return [(split, number) for split, number in subsets[name]]

    def _read(
        self, kind: str, place: tuple[str, int], shard: int, wanted: Sequence[int]
    ) -> Sequence[bytes]:
        """Reads records of a shard's file. Errors name the record at `place`: split, number."""
        split, number = place
        name = file_name(kind, split, shard, len(self._starts[split]) - 1)
        try:
            return self._files.read(name, wanted)
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            problem = f"record {number} of split {split} is damaged"
            raise DataError(self.path, problem, _cure(self.path)) from error


def open_dataset(path: epath.PathLike, split: str, *, lazy: bool = False) -> RecordSource:
    """Opens one split of a prepared dataset.

    Args:
      path: the folder from `prepare`, local or remote (see `RecordFiles`).
      split: "train", "test" or another name in the dataset's card.
      lazy: whether to decode only the accessed parts of `image` and `mask`, for random crops.

    Raises:
      DataError: the folder is not a complete dataset, or has no such split.
    """
    return RecordSource(path, split, lazy=lazy)


def read_metadata(path: epath.PathLike) -> Mapping[str, Any]:
    """Returns the metadata of a prepared dataset after a check that all its files are there.

    Raises:
      DataError: the folder is not a complete dataset.
    """
    folder = epath.Path(path)
    cure = _cure(folder)
    if not folder.is_dir():
        raise DataError(folder, "there is no such dataset", cure.removesuffix(" --overwrite"))
    try:
        metadata = json.loads((folder / METADATA).read_text())
        sizes = metadata["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"it is not a prepared dataset: {METADATA} is missing or damaged"
        raise DataError(folder, problem, cure) from error
    # One listing instead of a request per file, which takes minutes for 10,000 shards on gs://.
    # There, sizes are compared when a file is copied.
    there = {path.name for path in folder.iterdir()}
    for name, size in sizes.items():
        file = folder / name
        if name not in there or (is_local(folder) and file.stat().length != size):
            raise DataError(file, "this file of the dataset is missing or incomplete", cure)
    return metadata


def _shard_lengths(folder: epath.Path) -> dict[str, list[int]]:
    """Returns {split: number of records of each shard} from TFDS's metadata."""
    info = json.loads((folder / _INFO).read_text())
    return {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}


def _import_tfds() -> None:
    """Imports the parser of records before threads do.

    On Python 3.11 TFDS's lazy imports can deadlock two threads. The import takes 0.1 s, so it is
    not at the top of this module, which configs import.
    """
    from tensorflow_datasets.proto import tf_example_pb2  # noqa: F401


def _parse(data: bytes, spec: Mapping[str, tuple[Shape, type]]) -> dict[str, Any]:
    """Returns the fields of a tf.train.Example; TFDS's own parser would take 0.45 ms."""
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(data).features.feature
    later = {key: value for key, value in _LATER.items() if key not in features}
    return later | {key: _value(features[key], *spec[key]) for key in spec if key not in later}


def _value(feature: Any, shape: Shape, dtype: type) -> Any:
    (value,) = getattr(feature, feature.WhichOneof("kind")).value
    if dtype is str:
        return value.decode()
    if dtype is bytes:
        return value
    return np.frombuffer(value, dtype).reshape(shape) if shape else dtype(value)


def _volumes(stored: Mapping[str, Any], read: ReadBricks) -> dict[str, LazyArray]:
    """Returns `image` and `mask` of a record, not decoded yet."""
    shape, first = tuple(stored["shape"].tolist()), int(stored["first_brick"])
    dtype, uint8 = np.dtype(stored["image_dtype"]), np.dtype(np.uint8)
    if first < 0:
        image: LazyArray = WholeArray(stored["image"], shape, dtype)
    else:
        image = Bricked(read, first, shape, dtype)
    if first < 0 or not stored["mask_valid"]:
        mask: LazyArray = WholeArray(stored["mask"], shape, uint8)
    else:
        mask = Bricked(read, first + brick_count(shape), shape, uint8)
    return {"image": image, "mask": mask}


def _cure(folder: epath.Path) -> str:
    return f"prepare it again: {program()} prepare ... --out {folder} --overwrite"
