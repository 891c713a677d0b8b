"""Short names of config classes, which saved configs hold instead of module paths.

The facades below export every class that a config may hold. A class keeps its name when its file
moves. Classes of other packages have full names, such as "package.module:Class". They are loaded
only from packages that the user allows.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from data_pipelines.errors import ConfigError

FACADES = (
    *("m3djax", "m3djax.models", "m3djax.losses", "m3djax.tasks", "m3djax.evaluate"),
    "m3djax.contracts",
    "data_pipelines",
)
OWN = ("m3djax", "data_pipelines")

_allowed: set[str] = {"flax"}


def allow(*packages: str) -> None:
    """Allows saved configs to name classes of other packages, by the packages' top-level names.

    Loading such a class imports its package, and so runs its code. The working directory is
    searched after the installed packages.
    """
    _allowed.update(packages)
    if packages:
        search_working_directory()


def search_working_directory() -> None:
    """Lets imports find packages of the working directory, after the installed ones."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def foreign_packages(config: Any) -> set[str]:
    """Returns the top-level names of the other packages that a config as JSON names."""
    names = (name.partition(":")[0] for name in _class_names(config) if ":" in name)
    return {module.split(".")[0] for module in names}


def name_of(cls: type) -> str:
    """Returns the name of a class in saved configs, which `find` turns back into the class.

    Raises:
      ConfigError: no facade exports the class, or the class cannot be imported by its name.
    """
    package = cls.__module__.split(".")[0]
    if package in OWN:
        if _exported(cls.__name__) is not cls:
            raise ConfigError(
                f"{cls.__module__}:{cls.__name__} is not exported by {', '.join(FACADES)}, so a "
                "saved config cannot name it. Cure: add it to a facade's __init__.pyi."
            )
        return cls.__name__
    name = f"{cls.__module__}:{cls.__qualname__}"
    if getattr(sys.modules.get(cls.__module__), cls.__name__, None) is not cls:
        raise ConfigError(
            f"{name} cannot be imported by this name, so a saved config could not be read back. "
            "Cure: define the class at the top level of a module of a package, not in the config."
        )
    return name


def find(name: str) -> type:
    """Returns the class with this name, which must be a dataclass or a module.

    Raises:
      ConfigError: there is no such class, or its package was not given to `allow`.
    """
    found = _foreign(name) if ":" in name else _exported(name)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(
            f"config class {name!r} does not exist in this version. Cure: use the version that "
            "saved the config."
        )
    return found


def _exported(name: str) -> Any:
    for facade in map(importlib.import_module, FACADES):
        if name in facade.__all__:
            return getattr(facade, name)
    return None


def _foreign(name: str) -> Any:
    module, _, attribute = name.partition(":")
    package = module.split(".")[0]
    if package not in _allowed:
        raise ConfigError(
            f"config class {name!r} is of the package {package!r}, whose code would run. Cure: "
            f"--allow {package}, or m3djax.allow({package!r}) in Python, if you trust it."
        )
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"config class {name!r}: {error}. Cure: install the package, or start in the folder "
            "that holds it."
        ) from error


def _class_names(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if "class" in config:
            yield config["class"]
        for value in config.values():
            yield from _class_names(value)
    elif isinstance(config, list):
        for value in config:
            yield from _class_names(value)
