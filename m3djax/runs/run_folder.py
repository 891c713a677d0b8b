"""The folder of a run: config, command, environment, metrics, checkpoints and results."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from typing import Any

import jax
from etils import epath

from data_pipelines.errors import UserError
from data_pipelines.files import write_whole
from data_pipelines.pipeline import LOADING
from m3djax.config import serialize
from m3djax.experiment import Experiment
from m3djax.mesh import distributed

ROOT = "runs"
CONFIG = "config.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Fields that may change when a run is resumed.
_FREE = (
    *(
        "mesh",
        "gradient_accumulation_steps",
        "log_every",
        "save_every",
        "keep",
        "profile",
        "evaluators",
    ),
    *(f"data.{field}" for field in LOADING),
)


class RunError(UserError, RuntimeError):
    """Error for a folder that is not a run, or is another run."""


def open_for_training(experiment: Experiment) -> epath.Path:
    """Creates the run's folder, or opens it to resume; process 0 does so for all processes.

    Raises:
      RunError: the folder holds a run with another config, and the message names the fields that
        differ; or a process does not see the folder.
    """
    folder = epath.Path(distributed.from_first(lambda: os.fspath(_open(experiment))))
    if not (folder / CONFIG).exists():
        raise RunError(
            f"{folder}: process 0 made this run, and process {jax.process_index()} does not see "
            f"it. Cure: start where {ROOT}/ is on a file system that all hosts share."
        )
    return folder


def _open(experiment: Experiment) -> epath.Path:
    folder = epath.Path(ROOT) / experiment.name
    if (folder / "weights").exists():
        raise RunError(
            f"{folder}: holds weights without a run, and training would ignore them. Cure: choose "
            f"another --name, and set init_from={{COMPONENT: {str(folder)!r}}} in the config."
        )
    if (folder / CONFIG).exists():
        differing = differences(read_config(folder), serialize.to_json(experiment))
        # A run that was stopped before it saved anything has nothing to protect.
        if differing and (steps_in(folder) or (folder / "frozen").exists()):
            raise RunError(
                f"{folder}: is a run with another {', '.join(differing)}. "
                "Cure: choose another --name, or delete the folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    # Written atomically: a kill at this moment must not make the run unreadable.
    write_whole(folder / CONFIG, serialize.dumps(experiment))
    (folder / "command.txt").write_text(shlex.join([sys.executable, *sys.argv]) + "\n")
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1))
    return folder


def steps_in(folder: epath.PathLike) -> list[int]:
    """Returns the steps in a run's folder, readable or not, the newest first."""
    checkpoints = epath.Path(folder) / "checkpoints"
    if not checkpoints.exists():
        return []
    return sorted((int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()), reverse=True)


def read_experiment(folder: epath.PathLike) -> Experiment:
    """Reads the experiment of a run.

    Raises:
      RunError: the folder is not a run.
    """
    path = epath.Path(folder) / CONFIG
    if not path.exists():
        raise RunError(f"{folder}: is not a run (no {CONFIG}). Cure: give a folder below {ROOT}/.")
    config = _read(folder)
    if not isinstance(config, Experiment):
        raise RunError(f"{path}: is not the config of an experiment.")
    return config


def environment() -> dict[str, object]:
    """Returns versions of packages, and the devices."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "devices": [str(device) for device in jax.devices()],
        "processes": jax.process_count(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def read_config(folder: epath.PathLike) -> Any:
    """Returns a run's config as JSON, as this version would save it.

    Raises:
      RunError: the file is damaged, or not a config of this version or an earlier one.
    """
    return serialize.to_json(_read(folder))


def _read(folder: epath.PathLike) -> Any:
    """Returns the content of a run's config file; raises the errors of `read_config`."""
    path = epath.Path(folder) / CONFIG
    try:
        saved = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(
            f"{path}: is damaged: {error}. Cure: restore the file, or delete the run."
        ) from error
    try:
        return serialize.from_json(saved)
    except ValueError as error:
        raise RunError(f"{path}: cannot be read: {error}") from error


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Returns dotted paths of fields that differ between two JSON configs but must not."""
    if path in _FREE or old == new:
        return []
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [path]
    prefix = f"{path}." if path else ""
    return [
        difference
        for key in sorted(old.keys() | new.keys())
        for difference in differences(old.get(key), new.get(key), f"{prefix}{key}")
    ]
