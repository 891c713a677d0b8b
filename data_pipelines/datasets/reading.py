"""Random access to a prepared dataset."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex

from etils import epath

from data_pipelines.datasets.records import Record, feature_spec
from data_pipelines.errors import DataError

METADATA = "metadata.json"


class RecordSource:
    """The records of one split, by number. Pickles to worker processes as its path.

    Attributes:
      path: The dataset folder.
      split: The split.
      metadata: What `metadata.json` says: recipe, patients per split, names.
    """

    def __init__(self, path: epath.PathLike, split: str) -> None:
        """Opens the split; see `open_dataset`."""
        self.path = epath.Path(path)
        self.split = split
        self.metadata = read_metadata(self.path)
        if split not in self.metadata["splits"]:
            has = ", ".join(self.metadata["splits"])
            raise DataError(self.path, f"it has no split {split!r}", f"choose one of: {has}")
        self._spec = feature_spec(len(self.label_names))
        self._source: Any = None

    @property
    def mask_names(self) -> dict[int, str]:
        """{label value: name} of the masks."""
        return {int(value): name for value, name in self.metadata["mask_names"].items()}

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the entries of `labels`."""
        return tuple(self.metadata["label_names"])

    def __len__(self) -> int:
        """Number of records."""
        return self.metadata["splits"][self.split]["studies"]

    def __getitem__(self, index: SupportsIndex) -> Record:
        """Returns the record as numpy arrays (read-only) and strings; see `records`."""
        number = index.__index__()
        if not -len(self) <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        try:
            record = self._open()[number % len(self)]
        except RuntimeError as error:  # ArrayRecord keeps a hash of every chunk
            problem = f"record {number} of split {self.split} is damaged"
            raise DataError(self.path, problem, _cure(self.path)) from error
        return {key: self._typed(key, value) for key, value in record.items()}

    def __iter__(self) -> Iterator[Record]:
        """Yields all records in order."""
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        """Path, split and length."""
        return f"RecordSource({str(self.path)!r}, {self.split!r}, {len(self)} records)"

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the open files: every process opens its own."""
        return self.__dict__ | {"_source": None}

    def _open(self) -> Any:
        if self._source is None:
            import tensorflow_datasets as tfds  # a second; not for those who only ask for names

            self._source = tfds.builder_from_directory(self.path).as_data_source(self.split)
        return self._source

    def _typed(self, key: str, value: Any) -> Any:
        """Undoes TFDS's plain Python scalars, so that records stack into arrays of one dtype."""
        shape, dtype = self._spec[key]
        if dtype is str:
            return value.decode()
        return value if shape else dtype(value)


def open_dataset(path: epath.PathLike, split: str) -> RecordSource:
    """Opens one split of a prepared dataset.

    Args:
      path: The folder that `prepare` wrote.
      split: "train" or "test".

    Raises:
      DataError: The folder is not a complete dataset, or has no such split.
    """
    return RecordSource(path, split)


def read_metadata(path: epath.PathLike) -> Mapping[str, Any]:
    """Returns the metadata of a prepared dataset after checking that all its files are there.

    Raises:
      DataError: The folder is not a complete dataset.
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
    for name, size in sizes.items():
        file = folder / name
        if not file.exists() or file.stat().length != size:
            raise DataError(file, "this file of the dataset is missing or not whole", cure)
    return metadata


def _cure(folder: epath.Path) -> str:
    return f"prepare it again: python run.py prepare ... --out {folder} --overwrite"
