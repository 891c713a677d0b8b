"""Reader and writer of safetensors checkpoints: one file, or shards with an index."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_pipelines import files
from data_pipelines.errors import DataError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = ("F64", "F32", "F16", "BF16")
_SHARD = re.compile(r".+-\d+-of-\d+\.safetensors")


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A handle of a tensor in a file.

    Attributes:
      shape: sizes of its axes.
      read: reads the part that an index of slices selects, and no more.
      dtype: name of the dtype in the file.
    """

    shape: tuple[int, ...]
    read: Callable[[Any], np.ndarray]
    dtype: str = ""

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads a part; `[...]` reads the whole tensor."""
        return self.read(index)


def open_checkpoint(path: epath.PathLike) -> dict[str, LazyTensor]:
    """Returns the tensors of a checkpoint by name; their values are not read yet.

    Args:
      path: a .safetensors file, or a folder with one file or with shards and their index.

    Raises:
      DataError: there is no such checkpoint, the index and the shards disagree, a file is damaged,
        or a tensor has an unsupported dtype.
    """
    root = epath.Path(path)
    if not files.is_local(root):
        raise DataError(root, "weights are read from local disks only", "copy the folder first")
    if root.is_file():
        return _open_file(root)
    if (root / INDEX).is_file():
        return _open_shards(root)
    if (root / SINGLE).is_file():
        return _open_file(root / SINGLE)
    cure = "name a folder with safetensors (not .bin) in Hugging Face's layout"
    raise DataError(root, f"it has neither {SINGLE} nor {INDEX}", cure)


def write_checkpoint(
    path: epath.PathLike,
    tensors: Mapping[str, tuple[int, Callable[[], np.ndarray]]],
    *,
    single: str = SINGLE,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes tensors in Hugging Face's layout.

    The index, or the only file, is written last, and is whole or absent.

    Args:
      path: the folder.
      tensors: for each name, the size in bytes and a function that makes the tensor.
      single: name of the file, if one file is enough.
      shard_bytes: largest size of a file in bytes; a larger tensor gets a file of its own.
    """
    root = epath.Path(path)
    root.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = [[]]
    used = 0
    for name, (size, _) in tensors.items():
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    if len(shards) == 1:
        _write_file(root / single, shards[0], tensors)
        return
    where: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(root / file, names, tensors)
        where |= dict.fromkeys(names, file)
    total = sum(size for size, _ in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    files.write_whole(root / INDEX, json.dumps(index, indent=2, sort_keys=True))


def _write_file(
    path: epath.Path,
    names: Iterable[str],
    tensors: Mapping[str, tuple[int, Callable[[], np.ndarray]]],
) -> None:
    partial = path.parent / f".{path.name}.partial"
    arrays = {name: np.ascontiguousarray(tensors[name][1]()) for name in names}
    save_file(arrays, os.fspath(partial), metadata={"format": "pt"})
    partial.replace(path)


def _open_shards(root: epath.Path) -> dict[str, LazyTensor]:
    try:
        where: dict[str, str] = json.loads((root / INDEX).read_text())["weight_map"]
        listed = sorted(set(where.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(root / INDEX, f"no readable index ({error!r})", _AGAIN) from error
    if outside := [file for file in listed if os.path.basename(file) != file]:
        raise DataError(root / INDEX, f"it points outside its folder: {outside[0]}", _AGAIN)
    if absent := [file for file in listed if not (root / file).is_file()]:
        raise DataError(root, f"shards of the index are not there: {', '.join(absent)}", _AGAIN)
    present = {file.name for file in root.iterdir() if _SHARD.fullmatch(file.name)}
    if extra := sorted(present - set(listed)):
        raise DataError(root, f"shards are missing from the index: {', '.join(extra)}", _AGAIN)
    tensors: dict[str, LazyTensor] = {}
    for file in listed:
        held = _open_file(root / file)
        wanted = {name for name, at in where.items() if at == file}
        if wrong := sorted(wanted ^ set(held)):
            problem = f"{file} and the index disagree about {', '.join(wrong[:5])}"
            raise DataError(root, problem, _AGAIN)
        tensors |= held
    return tensors


def _open_file(path: epath.Path) -> dict[str, LazyTensor]:
    try:
        file = safe_open(os.fspath(path), framework="numpy")
    except (SafetensorError, OSError) as error:
        raise DataError(path, f"no readable safetensors file ({error})", _AGAIN) from error
    return {name: _lazy(file, name, path) for name in file.keys()}  # noqa: SIM118


def _lazy(file: Any, name: str, path: epath.Path) -> LazyTensor:
    part = file.get_slice(name)
    if part.get_dtype() not in _DTYPES:
        cure = f"use a checkpoint in one of {', '.join(_DTYPES)}, not a quantised one"
        raise DataError(path, f"{name} has dtype {part.get_dtype()}", cure)

    def read(index: Any) -> np.ndarray:
        return file.get_tensor(name) if index is ... else part[index]

    return LazyTensor(tuple(part.get_shape()), read, part.get_dtype())


_AGAIN = "fetch the checkpoint again, all of its files"
