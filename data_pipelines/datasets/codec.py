"""How voxels are stored: bytes shuffled and compressed, whole or in bricks, decoded on demand.

Measured through `RecordSource` on one core of an AMD EPYC, each as MB and ms to decode
(`python benchmarks/encoding.py`):

                                  CT at 1.5 mm   32x256x256 int16   32x256x256 uint8
  raw                             22.1   33 ms       4.2   2.4 ms       2.1   1.2 ms
  raw, ArrayRecord's zstd:3       12.0   85 ms       3.7   9.3 ms       1.1   4.4 ms
  bytes shuffled, zstd 1          11.3   34 ms       3.2   7.2 ms       1.3   4.7 ms
  bytes shuffled, lz4             12.9   18 ms       3.4   3.2 ms       1.6   1.9 ms
  bytes shuffled, lz4hc           11.1   17 ms       3.0   2.7 ms       1.2   1.5 ms

Of those that compress, lz4hc decodes fastest and is about the smallest. It takes five to ten times
as long to encode as lz4, 0.5 s for the CT and 0.1 s for the others: paid once, and little beside
reading a scan.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numcodecs import blosc

# Grain and `prepare` already use every core. The library's own thread pool is also shared, so that
# threads would wait for each other; without it every call has a context of its own.
blosc.use_threads = False

Shape = tuple[int, ...]
Window = tuple[slice, ...]
ReadBricks = Callable[[Sequence[int]], Sequence[bytes]]

LIMIT = 32 * 2**20
"""Bytes of voxels that are stored whole. They take 25 ms to decode, twice as long as to put a crop
of 112 x 224 x 224 together from bricks; and of E3D-GPT's volumes, half as large, it is the most."""
BRICK = (16, 64, 64)
"""A crop of 112 x 224 x 224 touches 1.9 times its voxels, one of 32 x 256 x 256 2.3 times; cubes
of 32 read as many bytes in more calls, which makes them slower."""


def compress(array: np.ndarray) -> bytes:
    """Returns the array as a Blosc buffer, which any Blosc reads."""
    return blosc.compress(np.ascontiguousarray(array), b"lz4hc", 5, blosc.SHUFFLE)


def decompress(data: bytes, dtype: np.dtype, shape: Shape) -> np.ndarray:
    """Returns the array that `compress` was given."""
    array = np.empty(shape, dtype)
    blosc.decompress(data, array)
    return array


def narrow(array: np.ndarray) -> np.ndarray:
    """Returns an integer array as uint8 if that holds its values, else as it is."""
    return array.astype(np.uint8) if array.min() >= 0 and array.max() <= 255 else array


def bricks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the bricks of a (D, H, W) array, the last axis fastest; those at the end are cut."""
    for place in itertools.product(*map(range, _grid(array.shape))):
        yield array[tuple(_extent(place, array.shape))]


def brick_count(shape: Shape) -> int:
    """Number of bricks of a volume."""
    return int(np.prod(_grid(shape)))


class LazyArray(ABC):
    """A (D, H, W) array that is decoded when it is looked into.

    Attributes:
      shape: (D, H, W).
      dtype: As stored: uint8, or int16 for images that need it.
    """

    ndim = 3

    def __init__(self, shape: Shape, dtype: np.dtype) -> None:
        self.shape = shape
        self.dtype = dtype

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory that it holds now."""

    @abstractmethod
    def load(self) -> None:
        """Decodes now what is stored whole, and keeps it; bricks stay on disk."""

    @abstractmethod
    def __getitem__(self, window: Window) -> np.ndarray:
        """Returns the voxels of a window: three slices of step 1."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns all voxels."""
        return np.asarray(self[(slice(None),) * 3], dtype)


class Whole(LazyArray):
    """An array in one buffer, decoded at the first look.

    Args:
      data: Of `compress`; empty if all voxels are 0.
      shape: (D, H, W).
      dtype: Of the array that was compressed.
    """

    def __init__(self, data: bytes, shape: Shape, dtype: np.dtype) -> None:
        super().__init__(shape, dtype)
        self._data = data
        self._array: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """See `LazyArray`."""
        return len(self._data) if self._array is None else self._array.nbytes

    def load(self) -> None:
        """See `LazyArray`."""
        self._decoded()

    def __getitem__(self, window: Window) -> np.ndarray:
        """See `LazyArray`."""
        return self._decoded()[window]

    def _decoded(self) -> np.ndarray:
        array = self._array
        if array is None:
            if self._data:
                array = decompress(self._data, self.dtype, self.shape)
            else:
                array = np.zeros(self.shape, self.dtype)
            self._array, self._data = array, b""
        return array


class Bricked(LazyArray):
    """An array in bricks, of which a look decodes those that it touches.

    Args:
      read: Returns the buffers of these bricks.
      first: Number of the first brick.
      shape: (D, H, W).
      dtype: Of the array that was compressed.
    """

    nbytes = 0

    def __init__(
        self,
        read: ReadBricks,
        first: int,
        shape: Shape,
        dtype: np.dtype,
    ) -> None:
        super().__init__(shape, dtype)
        self._read = read
        self._first = first

    def load(self) -> None:
        """See `LazyArray`."""

    def __getitem__(self, window: Window) -> np.ndarray:
        """See `LazyArray`."""
        assert all(part.step in (None, 1) for part in window), window
        bounds = [part.indices(side)[:2] for part, side in zip(window, self.shape, strict=True)]
        result = np.empty([high - low for low, high in bounds], self.dtype)
        if not result.size:
            return result
        touched = [
            range(low // side, -(-high // side))
            for (low, high), side in zip(bounds, BRICK, strict=True)
        ]
        places = list(itertools.product(*touched))
        numbers = np.ravel_multi_index(np.array(places).T, _grid(self.shape)) + self._first
        for place, data in zip(places, self._read(numbers.tolist()), strict=True):
            extent = _extent(place, self.shape)
            brick = decompress(data, self.dtype, tuple(part.stop - part.start for part in extent))
            shared = [
                (max(low, part.start), min(high, part.stop))
                for (low, high), part in zip(bounds, extent, strict=True)
            ]
            result[_shifted(shared, [low for low, _ in bounds])] = brick[
                _shifted(shared, [part.start for part in extent])
            ]
        return result


def _grid(shape: Shape) -> Shape:
    """Number of bricks along each axis."""
    return tuple(-(-side // brick) for side, brick in zip(shape, BRICK, strict=True))


def _extent(place: Sequence[int], shape: Shape) -> list[slice]:
    """Where the brick at a place of the grid lies in the volume."""
    return [
        slice(index * brick, min((index + 1) * brick, side))
        for index, brick, side in zip(place, BRICK, shape, strict=True)
    ]


def _shifted(bounds: Sequence[tuple[int, int]], origin: Sequence[int]) -> Window:
    return tuple(
        slice(low - start, high - start) for (low, high), start in zip(bounds, origin, strict=True)
    )
