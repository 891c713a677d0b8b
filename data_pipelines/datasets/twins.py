"""Finds scans with equal bytes, and groups the cases to which they belong."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.files import below
from data_pipelines.readers import content

_SLICE = re.compile(r"\.(png|jpe?g)$", re.IGNORECASE)
_PIECE = 1 << 16
"""Bytes from the middle of a file; they differ between most arrays of the same size."""
_CHUNK = 1 << 20
_AT_ONCE = 16


def copies(volumes: Iterable[epath.Path]) -> list[tuple[epath.Path, ...]]:
    """Returns groups of volumes (files or folders of slices) with the same bytes.

    Only volumes of the same size are read whole. The sizes of slices take as long as a listing.
    """
    alike = _alike(list(volumes), _looks)
    return [group for several in alike for group in _alike(several, _content)]


def read_pairs(table: epath.PathLike) -> list[tuple[str, str]]:
    """Reads pairs of study ids of kind "volume" from the leaks.csv of an earlier preparation.

    Raises:
      DataError: the file is not such a table.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(epath.Path(table).read_text())))
        return [(row["study_id"], row["other_study_id"]) for row in rows if row["kind"] == "volume"]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        cure = "give the leaks.csv of a dataset, from prepare --check-leaks"
        raise DataError(table, "it is not a readable table of leaks", cure) from error


class Union:
    """Disjoint groups of names. The first name in sorted order represents its group."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def join(self, names: Sequence[str]) -> None:
        """Merges the groups of these names."""
        firsts = sorted({self.first(name) for name in names})
        for name in firsts:
            self._parent[name] = firsts[0]

    def first(self, name: str) -> str:
        """Returns the first name of the group of a name, which may be the name itself."""
        while (parent := self._parent.get(name, name)) != name:
            name = parent
        return name


def _alike(
    volumes: Sequence[epath.Path], key: Callable[[epath.Path], Hashable]
) -> list[tuple[epath.Path, ...]]:
    """Returns the groups of volumes with the same key."""

    def known(volume: epath.Path) -> Hashable:
        try:
            return key(volume)
        except (OSError, DataError):
            return volume  # its reader reports the error and puts it aside

    groups = defaultdict(list)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for path, found in zip(volumes, pool.map(known, volumes), strict=True):
            groups[found].append(path)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _looks(volume: epath.Path) -> tuple[object, ...]:
    """Returns a key that is equal for copies and fast to compute."""
    held = _files(volume)
    sizes = sorted(path.stat().length for path in held)
    if len(sizes) != 1:
        return tuple(sizes)
    with content.open_file(held[0]) as file:
        file.seek(sizes[0] // 2)
        return sizes[0], hashlib.sha256(file.read(_PIECE)).hexdigest()


def _content(volume: epath.Path) -> str:
    """Returns a hash that does not depend on the names of slices."""
    return hashlib.sha256("".join(sorted(map(_hash, _files(volume)))).encode()).hexdigest()


def _hash(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with content.open_file(path) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _files(volume: epath.Path) -> list[epath.Path]:
    if not volume.is_dir():
        return [volume]
    return [path for path in volume.iterdir() if _SLICE.search(path.name)] or list(below(volume))
