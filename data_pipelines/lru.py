"""A cache of the most recently used values, for values whose inputs cannot be hashed."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class LruCache(Generic[ValueT]):
    """A cache that threads may share; `functools.lru_cache` needs arguments that can be hashed.

    Args:
      size: maximum number of values; the least recently used one is dropped first.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: collections.OrderedDict[Hashable, ValueT] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], ValueT]) -> ValueT:
        """Returns the value of a key, made by `make` if it is not in the cache.

        Threads that ask for a new key at the same time may each make its value.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()  # without the lock, so that other threads do not wait
        with self._lock:
            self._kept[key] = value
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return value
