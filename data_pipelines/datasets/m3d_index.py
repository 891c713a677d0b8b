"""Reads M3D_Cap.json: {name of a split: [{"image": path, "text": path}, ...]}."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from data_pipelines.errors import DataError

NAME = "M3D_Cap.json"
_FOLDERS = ("M3D_Cap", "M3D_Cap_npy", "M3D_Seg", "M3D_Seg_npy")
"""Paths in an index may begin with one of these, whatever the real name of the folder is."""
_OWN = ("train", "validation", "test")


@dataclass(frozen=True)
class Listed:
    """A volume of the index.

    Attributes:
      image: path of the volume, which may not exist.
      text: path of its report, which may not exist.
      splits: names of the released splits that have it, see `released_name`.
    """

    image: epath.Path
    text: epath.Path
    splits: tuple[str, ...]


def released_name(split: str) -> str:
    """Returns the name of a released split, with "released_" if a repaired split has that name."""
    return f"released_{split}" if split in _OWN else split


def read_index(root: epath.Path, volumes: Iterable[epath.Path]) -> list[Listed]:
    """Reads the index of a folder in M3D-Cap's layout.

    Args:
      root: `M3D_Cap` or `M3D_Cap_npy`, which has the index.
      volumes: the volumes that were found below the root. The index names arrays. An entry also
        matches a folder of slices, or an array whose name has no accents.

    Returns:
      Every volume once, in the order of the index. A volume that was not found has the path from
      the index, so that its reader reports the error.

    Raises:
      DataError: there is no index, it has another format, or an entry points out of the folder or
        contradicts another one. The error gives the split and the number of the entry.
    """
    path = root / NAME
    found = by_key(root, volumes)
    listed: dict[epath.Path, Listed] = {}
    for split, where, entry in _entries(path):
        image = below(root, path, where, entry, "image")
        text = below(root, path, where, entry, "text")
        image = found.get(key(image.relative_to(root)), image)
        before = listed.get(image, Listed(image, text, ()))
        if before.text != text:
            problem = f"{where}: its image has another text in {before.splits[0]}"
            raise DataError(path, problem, "give every image one text")
        if released_name(split) in before.splits:
            raise DataError(path, f"{where}: its image is in this split twice", "list it once")
        listed[image] = Listed(image, text, (*before.splits, released_name(split)))
    return list(listed.values())


def _entries(path: epath.Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yields the split, the place for error messages, and the entry."""
    try:
        index = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        cure = "download it with the data; for scans without it use prepare folder --table"
        raise DataError(path, "there is no such index", cure) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        cure = "download it again"
        raise DataError(path, "the index cannot be read, or is not JSON in UTF-8", cure) from error
    form = 'it must be {"train": [{"image": ..., "text": ...}, ...], "test": [...]}'
    if not isinstance(index, dict) or not all(isinstance(v, list) for v in index.values()):
        raise DataError(path, "the index is not a table of splits", form)
    for split, entries in index.items():
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise DataError(path, f"{split}[{number}] is not an entry", form)
            yield split, f"{split}[{number}]", entry


def below(
    root: epath.Path, index: epath.Path, where: str, entry: Mapping[str, Any], field: str
) -> epath.Path:
    """Returns the path in a field of an entry; only paths below the root are allowed.

    Args:
      root: `M3D_Cap` or `M3D_Cap_npy`.
      index: the index or table, for the error message.
      where: place of the entry in it, for the error message.
      entry: entry of the index or row of the table.
      field: name of the field with the path.

    Raises:
      DataError: the field has no path below the root.
    """
    value = entry.get(field)
    if not isinstance(value, str) or not value.strip():
        problem = f"{where}: {field!r} is missing, or is not a path"
        raise DataError(index, problem, "correct the entry, or remove it")
    parts = PurePosixPath(value).parts
    if not value.isprintable() or ".." in parts or parts[0] == "/" or "\\" in value:
        problem = f"{where}: {field} {value!r} is outside of the folder, or not a plain path"
        raise DataError(index, problem, "give a path below the folder, without '..'")
    return root.joinpath(*parts[1 if parts[0] in (*_FOLDERS, root.name) else 0 :])


def by_key(root: epath.Path, volumes: Iterable[epath.Path]) -> dict[str, epath.Path]:
    """Returns {`key` of the path: path} of the volumes."""
    return {key(volume.relative_to(root)): volume for volume in volumes}


def key(relative: epath.PathLike) -> str:
    """Returns a key that is equal for a series as a folder of slices and as an array."""
    text = unicodedata.normalize("NFKD", str(relative)).encode("ascii", "ignore").decode()
    return text.removesuffix(".npy")
