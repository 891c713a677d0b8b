"""Logical axes of parameters: every module registers its rows in its own file.

The sharding table is the union of these rows. A row belongs to a class. It does not apply to
parameters with the same names in another module.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn

from data_pipelines.errors import ConfigError

# Logical axis -> mesh axes.
MESH_AXES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "layers": (),
    "experts": (),
    "vocabulary": ("fsdp", "tensor"),
    "logits": ("tensor",),
}

LogicalAxes = tuple[str | None, ...]
"""One entry per dimension: a key of `MESH_AXES`, or None for a dimension not split."""

_ROWS: dict[type, dict[str, LogicalAxes]] = {}
_STACKED: dict[type, dict[str, str]] = {}


def register_axes(
    module: type,
    rows: Mapping[str, LogicalAxes] | None = None,
    *,
    stacked: Mapping[str, str] | None = None,
) -> None:
    """Registers the logical axes of a module's parameters.

    A module registers rows for its own parameters and for those of layers that it creates, such as
    "fc1/kernel" or "conv_[12]/kernel". Modules in its fields register their own rows. A subclass
    inherits the rows of its base. Adapters (LoRA) need no rows.

    Args:
      module: the class of a module, or of a task with layers of Flax as components.
      rows: regular expression -> one logical axis per dimension. The expression matches the whole
        path below the module. The axes leave out the leading axes of `stacked`.
      stacked: field that holds a module -> the leading axis ("layers", "experts") that a scan or a
        vmap over that module adds to its parameters.

    Raises:
      ConfigError: the class has registered its rows before.
    """
    if module in _ROWS:
        raise ConfigError(
            f"{_named(module)} registers its rows of the sharding table twice. Cure: one call of "
            "register_axes."
        )
    for pattern, axes in (rows or {}).items():
        if unknown := [axis for axis in axes if axis is not None and axis not in MESH_AXES]:
            raise ConfigError(
                f"register_axes({_named(module)}): {pattern!r} names the axis {unknown[0]!r}. "
                f"Cure: one of {', '.join(MESH_AXES)}, or None for a dimension kept whole."
            )
    _ROWS[module] = dict(rows or {})
    _STACKED[module] = dict(stacked or {})


def parameter_axes(model: Any, path: str, ndim: int) -> LogicalAxes:
    """Returns the logical axes of a parameter, from the one row that matches it.

    Args:
      model: the root of the path: a task, a module, or a dict of modules by component. For a bound
        module, the modules around it are searched too.
      path: names from the root on, joined by "/".
      ndim: number of dimensions of the parameter.

    Raises:
      ConfigError: no row or more than one matches, or the row has another number of entries.
    """
    *layer, name = path.split("/")
    if name in _LOW_RANK:
        row = parameter_axes(model, "/".join((*layer, "kernel")), ndim)
        return (*row[:-1], None) if name == "lora_a" else (*row[:-2], None, row[-1])
    stack, levels = _levels(model, path)
    found = [(owner, *row) for owner, rest in levels for row in _matches(owner, rest)]
    if len(found) != 1:
        raise ConfigError(_not_one(path, levels, [(owner, name) for owner, name, _ in found]))
    owner, pattern, axes = found[0]
    if len(stack) + len(axes) != ndim:
        raise ConfigError(
            f"parameter {path} has {ndim} dimensions, and the sharding table says "
            f"{(*stack, *axes)}. Cure: one entry per dimension in the row {pattern!r} of "
            f"{_named(owner)}; leading axes of a scan or a vmap are given as stacked=."
        )
    return (*stack, *axes)


_LOW_RANK = ("lora_a", "lora_b")  # (in, rank) and (rank, out) beside a kernel (in, out)

Levels = list[tuple[type, str]]
"""Classes of the modules along a path, each with the rest of the path below it."""


def _levels(model: Any, path: str) -> tuple[LogicalAxes, Levels]:
    """Returns the stacked axes along a path, and its levels, the outermost first."""
    stack: list[str] = []
    levels: Levels = []
    around, rest = model, path
    while isinstance(getattr(around, "parent", None), nn.Module):
        around, rest = around.parent, f"{around.name}/{rest}"
        levels.insert(0, (type(around), rest))
    while True:
        levels.append((type(model), path))
        name, _, rest = path.partition("/")
        child = next(((f, m) for f, key, m in _children(model) if key == name), None)
        if child is None or not rest:
            return tuple(stack), levels
        stack += [
            s[child[0]] for c in type(model).__mro__ if child[0] in (s := _STACKED.get(c, {}))
        ]
        model, path = child[1], rest


def _children(model: Any) -> Iterator[tuple[str, str, nn.Module]]:
    """Yields field, parameter name and module for every module in the fields of `model`."""
    if isinstance(model, Mapping):
        fields = dict(model)
    else:
        names = {field.name for field in dataclasses.fields(model)} - {"parent", "name"}
        fields = {name: getattr(model, name, None) for name in names}
    for field, value in fields.items():
        named: Mapping[Any, Any] = {}
        if isinstance(value, Mapping):
            named = {f"{field}_{key}": item for key, item in value.items()}
        elif isinstance(value, tuple | list):
            named = {f"{field}_{number}": item for number, item in enumerate(value)}
        for key, item in {field: value, **named}.items():
            if isinstance(item, nn.Module):
                yield field, key, item


def _matches(owner: type, rest: str) -> list[tuple[str, LogicalAxes]]:
    """Returns the matching rows of a class; if it has none, those of its nearest base."""
    for cls in owner.__mro__:
        rows = _ROWS.get(cls, {})
        if found := [(key, axes) for key, axes in rows.items() if re.fullmatch(key, rest)]:
            return found
    return []


def _not_one(path: str, levels: Levels, found: list[tuple[type, str]]) -> str:
    if found:
        rows = ", ".join(f"{pattern!r} of {_named(owner)}" for owner, pattern in found)
        return (
            f"parameter {path} matches {len(found)} rows of the sharding table: {rows}. "
            "Cure: keep one of them."
        )
    ours = [(owner, rest) for owner, rest in levels if not _is_layer(owner)]
    if not ours:
        return f"parameter {path} matches no row of the sharding table: no module has this name."
    owner, rest = ours[-1]
    return (
        f"parameter {path} matches no row of the sharding table. Cure: beside {_named(owner)}, "
        f"register_axes({owner.__name__}, {{{rest!r}: (...)}}), one entry per dimension."
    )


def _is_layer(owner: type) -> bool:
    """Returns whether a class is a layer of Flax or no module; such classes register no rows."""
    bases = set(owner.__mro__) - set(nn.Module.__mro__)
    return issubclass(owner, Mapping) or any(base.__module__.startswith("flax.") for base in bases)


def _named(cls: type) -> str:
    return f"{cls.__name__} ({cls.__module__})"
