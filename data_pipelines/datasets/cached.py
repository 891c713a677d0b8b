"""A memory cache of decoded records, for datasets that fit into memory."""

from __future__ import annotations

import collections
import functools
import threading
from typing import TYPE_CHECKING, Any

from data_pipelines.datasets.records import Record

if TYPE_CHECKING:
    from data_pipelines.datasets.reading import RecordSource


class CachedRecords:
    """Records with a cache of the most recently used ones, whose needed voxels are decoded.

    Args:
      records: records with lazy arrays.
      limit: maximum bytes of images and masks to keep; at least one record is kept.
      images: whether images are needed.
      masks: whether masks are needed.
    """

    def __init__(
        self, records: RecordSource, limit: int, *, images: bool = True, masks: bool = False
    ) -> None:
        self._records = records
        self._limit = limit
        self._needed = [name for name, on in (("image", images), ("mask", masks)) if on]
        self._kept: collections.OrderedDict[int, tuple[Record, int]] = collections.OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Returns a record of `records`, with decoded voxels."""
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index][0]
        record = self._records[index]  # without the lock: two threads may read the same record
        for name in self._needed:
            record[name].load()
        with self._lock:
            if index not in self._kept:
                nbytes = record["image"].nbytes + record["mask"].nbytes
                self._kept[index] = record, nbytes
                self._nbytes += nbytes
            while len(self._kept) > 1 and self._nbytes > self._limit:
                self._nbytes -= self._kept.popitem(last=False)[1][1]
        return record

    def __reduce__(self) -> tuple[Any, ...]:
        images, masks = "image" in self._needed, "mask" in self._needed
        made = functools.partial(CachedRecords, images=images, masks=masks)
        return made, (self._records, self._limit)
