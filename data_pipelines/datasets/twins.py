"""Scans that are there twice, byte for byte, and the cases that are one because of them."""

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
"""Bytes from the middle of an array that tell most arrays of one size apart."""
_CHUNK = 1 << 20
_AT_ONCE = 16


def copies(volumes: Iterable[epath.Path]) -> list[tuple[epath.Path, ...]]:
    """Groups of volumes, files or folders of slices, that hold the same bytes.

    Only volumes whose sizes agree are read whole; to ask for the sizes of all slices takes as
    long as to list them.
    """
    alike = _alike(list(volumes), _looks)
    return [group for several in alike for group in _alike(several, _content)]


def read_pairs(table: epath.PathLike) -> list[tuple[str, str]]:
    """Pairs of study ids from the leaks.csv of an earlier preparation, those of kind "volume".

    Raises:
      DataError: It is no such table.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(epath.Path(table).read_text())))
        return [(row["study_id"], row["other_study_id"]) for row in rows if row["kind"] == "volume"]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        cure = "give the leaks.csv that prepare --check-leaks wrote into a dataset"
        raise DataError(table, "it is no readable table of leaks", cure) from error


class Union:
    """Names that become one: each is answered for by the first of its group, in sorted order."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def join(self, names: Sequence[str]) -> None:
        """Puts the groups of all these names together."""
        firsts = sorted({self.first(name) for name in names})
        for name in firsts:
            self._parent[name] = firsts[0]

    def first(self, name: str) -> str:
        """The first name of a group; a name that was never joined stands for itself."""
        while (parent := self._parent.get(name, name)) != name:
            name = parent
        return name


def _alike(
    volumes: Sequence[epath.Path], key: Callable[[epath.Path], Hashable]
) -> list[tuple[epath.Path, ...]]:
    """Those of which several have the same key."""

    def known(volume: epath.Path) -> Hashable:
        try:
            return key(volume)
        except (OSError, DataError):
            return volume  # whoever reads it will say why it cannot be read, and put it aside

    groups = defaultdict(list)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for path, found in zip(volumes, pool.map(known, volumes), strict=True):
            groups[found].append(path)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _looks(volume: epath.Path) -> tuple[object, ...]:
    """What copies have in common and can be asked quickly."""
    held = _files(volume)
    sizes = sorted(path.stat().length for path in held)
    if len(sizes) != 1:
        return tuple(sizes)
    with content.open_file(held[0]) as file:
        file.seek(sizes[0] // 2)
        return sizes[0], hashlib.sha256(file.read(_PIECE)).hexdigest()


def _content(volume: epath.Path) -> str:
    """A hash that does not depend on how slices are named."""
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
