"""Transfer of weights between files and devices; the host never holds a whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding

from data_pipelines.errors import DataError
from m3djax.convert.name_map import Linear, MapError, Rule, Same, assign
from m3djax.convert.safetensors_files import LazyTensor, write_checkpoint
from m3djax.mesh import sharding
from m3djax.params import FlatParams

Index = Any  # a tuple of slices


def load(
    theirs: Mapping[str, LazyTensor],
    rules: Sequence[Rule],
    expected: Mapping[str, tuple[int, ...]],
    mesh: Mesh,
    model: Any,
    *,
    source: epath.PathLike | None = None,
    dtype: Any = None,
) -> FlatParams:
    """Loads published tensors as our parameters; each device's part is read separately.

    Args:
      theirs: all tensors of the checkpoint.
      rules: the map.
      expected: our paths and shapes.
      mesh: the devices.
      model: the root of our paths; see `sharding.state_shardings`.
      source: the checkpoint, for messages.
      dtype: dtype of the parameters; None: that of the file.

    Raises:
      MapError: as `name_map.load`: lists missing and unknown tensors and wrong shapes.
      DataError: the same, if `source` is given.
    """
    problems: list[str] = []
    sources: dict[str, tuple[Rule, int, list[LazyTensor]]] = {}
    for rule, tensors in assign(theirs, rules, problems).items():
        for part, path in enumerate(rule.paths):
            sources[path] = rule, part, tensors
    names = {path: rule.theirs for rule in rules for path in rule.paths}
    problems += [
        f"missing: {path} {tuple(shape)}, published as {names.get(path, '(no rule)')}"
        for path, shape in expected.items()
        if path not in sources
    ]
    problems += [f"not in this model: {path}" for path in sources if path not in expected]
    for path, (rule, part, tensors) in sources.items():
        wrong, wanted = _differing(rule, part, tensors, expected.get(path))
        if wrong:
            problems.append(f"wrong shape: {path}: the file has {wrong}, the model {wanted}")
    if problems and source is None:
        raise MapError(problems)
    if problems:
        lines = "\n  ".join(problems)
        cure = "check that config and weights belong together"
        raise DataError(source, f"these weights belong to another model:\n  {lines}\n", cure)
    return {
        path: jax.make_array_from_callback(
            tuple(expected[path]),
            NamedSharding(mesh, sharding.parameter_spec(path, tuple(expected[path]), mesh, model)),
            _reader(*sources[path], dtype),
        )
        for path in expected
    }


def save(
    path: epath.PathLike,
    ours: Mapping[str, Any],
    rules: Sequence[Rule],
    *,
    dtype: Any = None,
    shard_bytes: int = 5 * 10**9,
    more: Mapping[str, LazyTensor] | None = None,
) -> None:
    """Writes our parameters as a published checkpoint of safetensors; the inverse of `load`.

    Args:
      path: the folder.
      ours: arrays by path, of one process; the host holds those of one file at a time.
      rules: the map.
      dtype: dtype in the file; None: that of the parameters.
      shard_bytes: largest size of a file in bytes.
      more: further published tensors, which are copied.

    Raises:
      KeyError: a path of the map is absent.
    """
    tensors = copies(more or {}, dtype)
    for rule in rules:
        if not rule.paths:
            continue
        parts = [ours[name] for name in rule.paths]
        layers = len(parts[0]) if _stacked(rule) else 1
        items = sum(int(np.prod(part.shape)) for part in parts) // layers
        size = items * np.dtype(dtype or parts[0].dtype).itemsize
        first = rule.layers[0] if rule.layers else 0
        for layer in range(layers):
            name = rule.theirs.replace("{i}", str(first + layer))
            tensors[name] = size, _maker(rule, parts, layer, dtype)
    write_checkpoint(path, tensors, shard_bytes=shard_bytes)


def copies(
    tensors: Mapping[str, LazyTensor], dtype: Any = None
) -> dict[str, tuple[int, Callable[[], np.ndarray]]]:
    """Returns tensors of a file as `write_checkpoint` takes them, cast if `dtype` is given."""

    def copy(tensor: LazyTensor) -> tuple[int, Callable[[], np.ndarray]]:
        size = np.dtype(dtype or np.float32).itemsize * int(np.prod(tensor.shape))
        return size, lambda: tensor[...].astype(dtype, copy=False) if dtype else tensor[...]

    return {name: copy(tensor) for name, tensor in tensors.items()}


def _maker(rule: Rule, parts: Sequence[Any], layer: int, dtype: Any) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        whole = [np.asarray(part[layer] if _stacked(rule) else part) for part in parts]
        return rule.via.save(whole).astype(dtype or whole[0].dtype, copy=False)

    return make


def _reader(
    rule: Rule, part: int, tensors: list[LazyTensor], dtype: Any
) -> Callable[[Index], np.ndarray]:
    """Returns a function that reads one device's part of a parameter."""

    def read(index: Index) -> np.ndarray:
        if not _stacked(rule):
            found = _part(rule, part, tensors[0], index)
            # Not ascontiguousarray, which turns a scalar into an array of shape (1,).
            return np.asarray(found, dtype or found.dtype, order="C")
        layers = range(len(tensors))[index[0]]
        out: np.ndarray | None = None
        for at, layer in enumerate(layers):
            found = _part(rule, part, tensors[layer], index[1:])
            if out is None:
                out = np.empty((len(layers), *found.shape), dtype or found.dtype)
            out[at] = found
        assert out is not None
        return out

    return read


def _part(rule: Rule, part: int, tensor: LazyTensor, index: Index) -> np.ndarray:
    """Reads one layer's part; transforms other than a transposition need the whole tensor."""
    if isinstance(rule.via, Linear):
        return tensor[index[::-1]].T
    if rule.via == Same():
        return tensor[index or ...]
    return rule.via.load(tensor[...])[part][index]


def _differing(
    rule: Rule, part: int, tensors: Sequence[LazyTensor], expected: Sequence[int] | None
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Returns the shape of a parameter in the file, None if it is as expected; and the expected."""
    if expected is None:
        return None, None
    shapes = [_shape(rule, part, tensor) for tensor in tensors]
    wanted = tuple(expected)[1 if _stacked(rule) else 0 :]
    wrong = next((shape for shape in shapes if shape != wanted), shapes[0])
    whole = (len(tensors), *wrong) if _stacked(rule) else wrong
    return (None if whole == tuple(expected) else whole), tuple(expected)


def _shape(rule: Rule, part: int, tensor: LazyTensor) -> tuple[int, ...]:
    if isinstance(rule.via, Linear):
        return tensor.shape[::-1]
    if rule.via == Same():
        return tensor.shape
    # The shape does not depend on values, so nothing is read.
    return rule.via.load(np.broadcast_to(np.zeros((), np.float32), tensor.shape))[part].shape


def _stacked(rule: Rule) -> bool:
    return "{i}" in rule.theirs
