"""Configs as JSON: dataclasses and modules carry the registered name of their class."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from data_pipelines.errors import ConfigError
from m3djax.config import migrations, registry

# Fields of every Linen module that are no part of a config.
_LINEN = {"parent", "name"}


def to_json(config: Any) -> Any:
    """Returns a config as JSON: classes by name, tuples as lists.

    Raises:
      ConfigError: a class has no name by which it could be loaded again.
      TypeError: a value is neither plain nor a dataclass.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {"class": registry.name_of(type(config)), **_fields(config)}
    if isinstance(config, Mapping):
        return {key: to_json(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_json(value) for value in config]
    if config is None or isinstance(config, (str, int, float, bool)):
        return config
    raise TypeError(f"{config!r} cannot be part of a config: use str, int, float, tuples, classes.")


def _fields(config: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass as JSON.

    Flax's own layers have fields such as initializers, which JSON cannot hold. They are left out
    where they have their default.
    """
    skipped = _LINEN if hasattr(config, "parent") and hasattr(config, "scope") else ()
    found = {}
    for field in dataclasses.fields(config):
        if field.name in skipped:
            continue
        value = getattr(config, field.name)
        try:
            found[field.name] = to_json(value)
        except TypeError:
            if value is not field.default:
                raise
    return found


def from_json(value: Any) -> Any:
    """Returns the config that `to_json` wrote, in this version or an earlier one.

    Raises:
      ConfigError: the JSON has a class that may not be loaded, or a field that the class does not
        have.
    """
    return _build(migrations.upgrade(value))


def upgrade(value: Any) -> Any:
    """Returns a saved config as this version saves it; new fields have their defaults."""
    return to_json(from_json(value))


def dumps(config: Any) -> str:
    """Returns a config as readable JSON text."""
    return json.dumps(migrations.stamp(to_json(config)), indent=1)


def _build(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_build(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {key: _build(item) for key, item in value.items() if key != "class"}
    if "class" not in value:
        return fields
    cls = registry.find(value["class"])
    try:
        return cls(**fields)
    except TypeError as error:
        raise ConfigError(f"config of {value['class']!r} is of another version: {error}") from error
