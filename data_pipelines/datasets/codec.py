"""Encodes voxels with byte shuffle and compression, whole or in bricks, and decodes them on demand.

MB, and ms to decode, measured with `RecordSource` on one core of an AMD EPYC
(`python benchmarks/encoding.py`):

                                  CT at 1.5 mm   32x256x256 int16   32x256x256 uint8
  raw                             22.1   33 ms       4.2   2.4 ms       2.1   1.2 ms
  raw, ArrayRecord's zstd:3       12.0   85 ms       3.7   9.3 ms       1.1   4.4 ms
  bytes shuffled, zstd 1          11.3   34 ms       3.2   7.2 ms       1.3   4.7 ms
  bytes shuffled, lz4             12.9   18 ms       3.4   3.2 ms       1.6   1.9 ms
  bytes shuffled, lz4hc           11.1   17 ms       3.0   2.7 ms       1.2   1.5 ms

Among the compressed forms lz4hc decodes fastest and is about the smallest. Its encoding takes five
to ten times as long as with lz4: 0.5 s for the CT and 0.1 s for the others. This happens once, and
is short compared with the time to read a scan.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numcodecs import blosc

# Grain and `prepare` already use every core. Also, threads share the library's thread pool and
# would wait for each other. Without the pool every call has a context of its own.
blosc.use_threads = False

Shape = tuple[int, ...]
Slices = tuple[slice, ...]
ReadBricks = Callable[[Sequence[int]], Sequence[bytes]]

LIMIT = 32 * 2**20
"""Maximum bytes of a volume that is stored whole. It takes 25 ms to decode, twice as long as a crop
of 112 x 224 x 224 from bricks. Volumes of E3D-GPT have half this size, and such a crop is most of
them."""
BRICK = (16, 64, 64)
"""Voxels of a brick along (D, H, W). The bricks of a crop of 112 x 224 x 224 have 1.9 times its
voxels, those of a crop of 32 x 256 x 256 have 2.3 times. Cubes of 32 are slower: they need more
reads for as many bytes."""


def compress(array: np.ndarray) -> bytes:
    """Returns the array as a Blosc buffer in the standard format."""
    return blosc.compress(np.ascontiguousarray(array), b"lz4hc", 5, blosc.SHUFFLE)


def decompress(data: bytes, dtype: np.dtype, shape: Shape) -> np.ndarray:
    """Returns the array of a buffer from `compress`."""
    array = np.empty(shape, dtype)
    blosc.decompress(data, array)
    return array


def narrow(array: np.ndarray) -> np.ndarray:
    """Returns an integer array as uint8 if its values fit, else unchanged."""
    return array.astype(np.uint8) if array.min() >= 0 and array.max() <= 255 else array


def bricks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the bricks of a (D, H, W) array, last axis fastest; bricks at the end are smaller."""
    for place in itertools.product(*map(range, _grid(array.shape))):
        yield array[tuple(_extent(place, array.shape))]


def brick_count(shape: Shape) -> int:
    """Returns the number of bricks of a volume."""
    return int(np.prod(_grid(shape)))


class LazyArray(ABC):
    """A (D, H, W) array that is decoded when it is indexed.

    Attributes:
      shape: (D, H, W).
      dtype: dtype as stored: uint8, or int16 for images that need it.
    """

    ndim = 3

    def __init__(self, shape: Shape, dtype: np.dtype) -> None:
        self.shape = shape
        self.dtype = dtype

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Returns the bytes of memory that the array uses now."""

    @abstractmethod
    def load(self) -> None:
        """Decodes a whole array now and keeps it in memory; bricks stay on disk."""

    @abstractmethod
    def __getitem__(self, window: Slices) -> np.ndarray:
        """Returns the voxels of a window: three slices of step 1."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns all voxels."""
        return np.asarray(self[(slice(None),) * 3], dtype)


class WholeArray(LazyArray):
    """An array in one buffer, decoded at the first access.

    Args:
      data: buffer from `compress`; empty if all voxels are 0.
      shape: (D, H, W).
      dtype: dtype of the compressed array.
    """

    def __init__(self, data: bytes, shape: Shape, dtype: np.dtype) -> None:
        super().__init__(shape, dtype)
        self._data = data
        self._array: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Returns the used bytes of memory; see `LazyArray`."""
        return len(self._data) if self._array is None else self._array.nbytes

    def load(self) -> None:
        """Decodes the array; see `LazyArray`."""
        self._decoded()

    def __getitem__(self, window: Slices) -> np.ndarray:
        """Returns the voxels of a window; see `LazyArray`."""
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
    """An array in bricks. An access decodes only the bricks that it needs.

    Args:
      read: returns the buffers of bricks by number.
      first: number of the first brick.
      shape: (D, H, W).
      dtype: dtype of the compressed array.
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
        """Does nothing, because bricks stay on disk; see `LazyArray`."""

    def __getitem__(self, window: Slices) -> np.ndarray:
        """Returns the voxels of a window; see `LazyArray`."""
        assert all(part.step in (None, 1) for part in window), window
        bounds = [part.indices(side)[:2] for part, side in zip(window, self.shape, strict=True)]
        result = np.empty([max(high - low, 0) for low, high in bounds], self.dtype)
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
    """Returns the number of bricks along each axis."""
    return tuple(-(-side // brick) for side, brick in zip(shape, BRICK, strict=True))


def _extent(place: Sequence[int], shape: Shape) -> list[slice]:
    """Returns the slices of the volume for the brick at a place of the grid."""
    return [
        slice(index * brick, min((index + 1) * brick, side))
        for index, brick, side in zip(place, BRICK, shape, strict=True)
    ]


def _shifted(bounds: Sequence[tuple[int, int]], origin: Sequence[int]) -> Slices:
    return tuple(
        slice(low - start, high - start) for (low, high), start in zip(bounds, origin, strict=True)
    )
