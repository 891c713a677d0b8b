"""Config files: found by path or by name, and loaded."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from data_pipelines.errors import ConfigError
from m3djax.config import registry, serialize

_PACKAGE = Path(__file__).parents[1]
# An installed m3djax holds `configs` in a folder of its own: other packages may have that name.
_INSTALLED = _PACKAGE / "shipped"
_SHIPPED = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent


def load_config(path: str | Path) -> Any:
    """Returns the result of `get_config()` of a config: an experiment or a plan's `Target`.

    Raises:
      ConfigError: there is no such config, or it has no `get_config`.
    """
    module = load_module(path)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path}: has no get_config(). Cure: see configs/quickstart.py.")
    config = module.get_config()
    # The config's code has been run, so the packages that it uses are trusted.
    registry.allow(*registry.foreign_packages(serialize.to_json(config)))
    return config


def load_module(path: str | Path) -> ModuleType:
    """Runs a config file, in which `import configs` means the shipped configs; returns its module.

    Raises:
      ConfigError: there is no such config.
    """
    file = find(path)
    if str(_SHIPPED) not in sys.path:
        sys.path.insert(0, str(_SHIPPED))
    registry.search_working_directory()  # a config may import packages that lie there
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find(path: str | Path) -> Path:
    """Returns the file of a config. `path` is a path, or the path or name of a shipped config.

    "configs/m3d/clip.py" and "m3d/clip" name the same shipped config in every working directory.

    Raises:
      ConfigError: there is no such config; the message lists those that are shipped.
    """
    given = Path(path)
    shipped = _SHIPPED / "configs" / given
    for file in (given, _SHIPPED / given, shipped.with_name(f"{shipped.name}.py")):
        if file.is_file():
            return file
    raise ConfigError(
        f"{path}: there is no such config. Cure: the path of a config file, or one of "
        f"{', '.join(names())}."
    )


def names() -> list[str]:
    """Returns the names of the shipped configs, such as "quickstart" and "m3d/clip"."""
    folder = _SHIPPED / "configs"
    files = (file for file in folder.rglob("*.py") if "def get_config" in file.read_text())
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)
