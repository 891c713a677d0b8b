"""Writes records as ArrayRecord files in TFDS's format. TensorFlow is neither used nor installed.

A dataset folder has TFDS's dataset_info.json and features.json. For every split and shard it has
the records in `volumes-SPLIT.array_record-0000i-of-0000N`. A shard with volumes that are too large
to decode whole also has a file of the same name with `bricks`: an ArrayRecord file with one brick
per record. Chunks of both files have hashes.

From a CT of 600 x 512 x 512, a crop of 112 x 224 x 224 takes 12 ms, a crop of 32 x 256 x 256 takes
5 ms, and the whole volume takes 450 ms. The two crops take 8 and 3 ms from Tensorstore's zarr3
shards, but these are two files per volume. In Tensorstore's OCDBT database they take longer.
"""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from data_pipelines.datasets import codec
from data_pipelines.datasets.records import Record, feature_spec
from data_pipelines.files import is_local

RECORDS = "volumes"
BRICKS = "bricks"
_SUFFIX = "array_record"
_OPTIONS = "group_size:1,uncompressed"  # one chunk per record; voxels are already compressed
_AT_ONCE = 16


def stored_spec(num_labels: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Returns {field: (shape, dtype)} of a record on disk.

    It is the `feature_spec` except for the two volumes. `image` and `mask` are Blosc buffers of
    `shape` voxels in C order: `np.frombuffer(blosc.decompress(image), image_dtype)`. The image is
    uint8 if its values fit, and the mask is always uint8; an empty mask is all 0. If `first_brick`
    is not -1, both are empty and the bricks are in the shard's other file. The bricks of the image
    begin at this number; after them are the bricks of the mask, if there is one. See
    `codec.bricks`.

    Args:
      num_labels: length of `labels`.
    """
    volumes = {
        "image": ((), bytes),
        "image_dtype": ((), str),
        "mask": ((), bytes),
        "shape": ((3,), np.int32),
        "first_brick": ((), np.int64),
    }
    return {**feature_spec(num_labels), **volumes}  # type: ignore[dict-item]


def file_name(kind: str, split: str, number: int, count: int) -> str:
    """Returns the name of a shard's file in TFDS's format; `kind` is RECORDS or BRICKS."""
    return f"{kind}-{split}.{_SUFFIX}-{number:05d}-of-{count:05d}"


class ShardWriter:
    """A context manager that writes the files of one shard into a local folder.

    Args:
      folder: folder for `volumes.array_record`, and for `bricks.array_record` if a volume is large.
      num_labels: length of the `labels` field.
    """

    def __init__(self, folder: Path, num_labels: int) -> None:
        self.count = 0
        """Number of records so far."""
        self._folder = folder
        self._features = _features(num_labels)
        self._records = _writer(folder, RECORDS)
        self._bricks: Any = None
        self._brick_count = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._records.close()
        if self._bricks is not None:
            self._bricks.close()

    def write(self, record: Record) -> None:
        """Writes a record; see `records.feature_spec`."""
        image = codec.narrow(record["image"])
        masks = [record["mask"]] if record["mask_valid"] else []
        stored = {"image": b"", "mask": b"", "first_brick": -1}
        if image.nbytes <= codec.LIMIT:
            stored |= {"image": codec.compress(image), "mask": b"".join(map(codec.compress, masks))}
        else:
            stored["first_brick"] = self._brick_count
            for array in [image, *masks]:
                self._write_bricks(array)
        stored |= {"shape": image.shape, "image_dtype": image.dtype.name}
        self._records.write(self._features.serialize_example({**record, **stored}))
        self.count += 1

    def _write_bricks(self, array: np.ndarray) -> None:
        if self._bricks is None:
            self._bricks = _writer(self._folder, BRICKS)
        for brick in codec.bricks(array):
            self._bricks.write(codec.compress(brick))
            self._brick_count += 1


@dataclass(frozen=True)
class FinishedShard:
    """A finished shard.

    Attributes:
      path: the folder from a `ShardWriter`, local or remote.
      count: number of its records.
      nbytes: bytes of its files.
    """

    path: epath.Path
    count: int
    nbytes: int


def publish(parts: Mapping[str, Sequence[FinishedShard]], out: epath.Path, num_labels: int) -> None:
    """Makes a dataset folder from finished shards, which do not change.

    Args:
      parts: {split: shards in the order of their records}; shards without records are left out.
      out: the folder. It gets hard links if it is on the file system of the shards, else copies.
      num_labels: length of the `labels` field.
    """
    splits = {split: [part for part in listed if part.count] for split, listed in parts.items()}
    splits = {split: listed for split, listed in splits.items() if listed}
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda pair: _place(*pair), _placed(splits, out)))
    _describe(splits, out, num_labels)


def _placed(
    splits: Mapping[str, Sequence[FinishedShard]], out: epath.Path
) -> Iterable[tuple[epath.Path, epath.Path]]:
    for split, parts in splits.items():
        for number, part in enumerate(parts):
            for kind in (RECORDS, BRICKS):
                target = out / file_name(kind, split, number, len(parts))
                yield epath.Path(part.path) / f"{kind}.{_SUFFIX}", target


def _place(source: epath.Path, target: epath.Path) -> None:
    if source.stem == BRICKS and not source.exists():
        return
    if is_local(source) and is_local(target):
        with contextlib.suppress(OSError):  # another file system, or one without hard links
            Path(target).hardlink_to(source)
            return
    source.copy(target, overwrite=True)


def _describe(
    splits: Mapping[str, Sequence[FinishedShard]], out: epath.Path, num_labels: int
) -> None:
    """Writes TFDS's metadata, so that `tfds.builder_from_directory` reads the folder."""
    import tensorflow_datasets as tfds

    identity = tfds.core.dataset_info.DatasetIdentity(
        name=RECORDS, version=tfds.core.Version("1.0.0"), data_dir=str(out), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=_features(num_labels))
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    template = tfds.core.ShardedFileTemplate(
        data_dir=out, dataset_name=RECORDS, filetype_suffix=_SUFFIX
    )
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[part.count for part in parts],
            num_bytes=sum(part.nbytes for part in parts),
            filename_template=template.replace(split=split),
        )
        for split, parts in splits.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(infos))
    with contextlib.redirect_stdout(io.StringIO()):  # hides the output of TFDS
        info.write_to_directory(out)


def _writer(folder: Path, kind: str) -> Any:
    return ArrayRecordWriter(str(folder / f"{kind}.{_SUFFIX}"), _OPTIONS)


def _features(num_labels: int) -> Any:
    import tensorflow_datasets as tfds  # this import takes a second, and readers do not need it

    def feature(shape: tuple[int, ...], dtype: type) -> tfds.features.FeatureConnector:
        if dtype is str:
            return tfds.features.Text()
        if dtype is bytes:
            return tfds.features.Tensor(shape=(), dtype=np.object_)
        if shape == ():
            return tfds.features.Scalar(dtype=dtype)
        # A list of numbers, TFDS's default, cannot hold float64.
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)

    spec = stored_spec(num_labels)
    return tfds.features.FeaturesDict({key: feature(*value) for key, value in spec.items()})
