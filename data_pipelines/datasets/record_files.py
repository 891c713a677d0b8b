"""The ArrayRecord files of a dataset folder, wherever it is."""

import fcntl
import functools
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.fetch import cache_dir
from data_pipelines.files import is_local

_MOST_OPEN = 256  # of 1024 files that a process may have open by default
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access; Grain has the threads


class RecordFiles:
    """Reads records of files by number. Safe in threads; pickles as its arguments.

    ArrayRecord reads local files only. Those of a folder elsewhere (gs://) are copied to
    `$M3DJAX_CACHE/datasets` when their first record is needed, one process waiting for the other,
    and stay there: the disk needs room for the whole dataset, on every machine that shuffles it.

    Args:
      folder: The dataset folder.
      sizes: {file name: bytes}.
      version: Changes with the content of the folder, so that no old copy is read.
    """

    def __init__(self, folder: epath.Path, sizes: Mapping[str, int], version: str) -> None:
        self._arguments = (folder, sizes, version)
        self._open = functools.lru_cache(_MOST_OPEN)(self._reader)

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordFiles, self._arguments

    def read(self, name: str, numbers: Sequence[int]) -> Sequence[bytes]:
        """Returns these records of a file.

        Raises:
          DataError: A file that is not local cannot be copied.
          ValueError: The file or the record is damaged; ArrayRecord keeps a hash of every chunk.
        """
        try:
            reader, lock = self._open(name)
            if len(numbers) > 1:
                return reader.read(numbers)
            # Reads into buffers that the reader keeps: half a millisecond per MB instead of two.
            with lock:
                reader.seek(*numbers)
                return [reader.read()]
        except (RuntimeError, IndexError) as error:
            raise ValueError("damaged") from error

    def _reader(self, name: str) -> tuple[Any, threading.Lock]:
        folder, sizes, version = self._arguments
        path = folder / name
        if not is_local(folder):
            path = epath.Path(_local_copy(path, sizes[name], version))
        return ArrayRecordReader(os.fspath(path), options=_OPTIONS), threading.Lock()


def _local_copy(path: epath.Path, size: int, version: str) -> Path:
    """Returns the copy of a file in the cache, after making it if it is not there."""
    key = hashlib.sha256(f"{path.parent} {version}".encode()).hexdigest()[:16]
    target = Path(cache_dir()) / "datasets" / key / path.name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{path.name}"
    with (target.parent / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes away with its process, however that ends
        if not target.exists():
            try:
                path.copy(partial, overwrite=True)
            except FileNotFoundError:
                partial.unlink(missing_ok=True)
            if not partial.exists() or partial.stat().st_size != size:
                cure = "wait for whoever writes the dataset, or prepare it again"
                raise DataError(path, "this file of the dataset is missing or not whole", cure)
            partial.rename(target)
    return target
