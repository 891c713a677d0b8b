"""An experiment: everything that a run depends on, as one tree of dataclasses and modules."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from data_pipelines.errors import ConfigError
from data_pipelines.pipeline import Data
from m3djax.evaluate.base import Evaluator
from m3djax.optim import AdamW, Group
from m3djax.tasks.base import Task

# Configs are read from run folders, so only classes of the project may be named in them.
_PACKAGES = ("m3djax.", "data_pipelines.")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What `run.py train` runs; a config file's `get_config()` returns one.

    Attributes:
      name: the run's folder is `runs/NAME`.
      task: components and loss.
      data: where batches come from.
      optimizer: optimizer and schedule.
      trainable: regex over parameter paths; what it does not match is frozen.
      groups: parameters with their own learning rate or weight decay.
      init_from: component -> run, or folder of `run.py convert`, to take its start from.
      evaluators: what is measured, by name.
      steps: optimizer steps.
      accumulate: parts that a batch is computed in, to save memory; the update is the same.
      seed: of everything random.
      mesh: devices along (data, fsdp, tensor); -1 takes what is left.
      log_every: steps between two lines of metrics.
      save_every: steps between two checkpoints.
      keep: how many checkpoints are kept.
      profile: first and last step of a profiler trace; (0, 0) for none.
    """

    name: str
    task: Task
    data: Data
    optimizer: AdamW = AdamW()
    trainable: str = ".*"
    groups: tuple[Group, ...] = ()
    init_from: Mapping[str, str] = dataclasses.field(default_factory=dict)
    evaluators: Mapping[str, Evaluator] = dataclasses.field(default_factory=dict)
    steps: int = 100
    accumulate: int = 1
    seed: int = 0
    mesh: tuple[int, int, int] = (-1, 1, 1)
    log_every: int = 10
    save_every: int = 1000
    keep: int = 2
    profile: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.data.batch_size % self.accumulate:
            raise ConfigError(
                f"accumulate={self.accumulate} does not divide batch_size={self.data.batch_size}."
            )
        if self.accumulate > 1 and not self.task.accumulates:
            raise ConfigError(
                f"accumulate={self.accumulate}: {type(self.task).__name__} compares the samples of "
                "a batch with each other, and in parts that is another loss. Cure: accumulate=1, "
                'and more devices, a smaller batch or remat="full" in the towers.'
            )
        if min(self.steps, self.accumulate, self.log_every, self.save_every, self.keep) < 1:
            raise ConfigError("steps, accumulate, log_every, save_every and keep start at 1.")
        if self.profile != (0, 0) and not 0 <= self.profile[0] < self.profile[1] <= self.steps:
            raise ConfigError(f"profile={self.profile} must be two rising steps of {self.steps}.")


def to_json(config: Any) -> Any:
    """A config as JSON: dataclasses and modules carry their class, tuples become lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        skipped = ("parent", "name") if isinstance(config, nn.Module) else ()
        fields = {
            field.name: to_json(getattr(config, field.name))
            for field in dataclasses.fields(config)
            if field.name not in skipped
        }
        return {"class": f"{type(config).__module__}:{type(config).__qualname__}", **fields}
    if isinstance(config, Mapping):
        return {key: to_json(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_json(value) for value in config]
    if config is None or isinstance(config, (str, int, float, bool)):
        return config
    raise TypeError(f"{config!r} cannot be part of a config: use str, int, float, tuples, classes.")


def from_json(value: Any) -> Any:
    """The inverse of `to_json`.

    Raises:
      ValueError: if the JSON names a class that is not a config of this project, or a field that
        the class does not have.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {key: from_json(item) for key, item in value.items() if key != "class"}
    if "class" not in value:
        return fields
    cls = _class(value["class"])
    try:
        return cls(**fields)
    except TypeError as error:
        raise ConfigError(f"config of {value['class']!r} is of another version: {error}") from error


def _class(path: str) -> type:
    """What "module:name" stands for: a dataclass of this project, and nothing else."""
    module, _, name = path.partition(":")
    if not module.startswith(_PACKAGES):
        raise ConfigError(f"config class {path!r} is not one of {_PACKAGES}.")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        found = None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(
            f"config class {path!r} does not exist in this version. "
            "Cure: the version that wrote it."
        )
    return found


def dumps(config: Any) -> str:
    """A config as readable JSON text."""
    return json.dumps(to_json(config), indent=1)
