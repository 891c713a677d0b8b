"""An experiment: everything that a run depends on, as one tree of dataclasses and modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import tyro

from data_pipelines.errors import ConfigError
from data_pipelines.pipeline import Data
from m3djax.adapters import Adapted, LoRA
from m3djax.contracts.evaluator import Evaluator
from m3djax.contracts.task import Task
from m3djax.inputs.inputs import Inputs
from m3djax.optim import AdamW, Group
from m3djax.params import Params


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What the verb `train` runs; a config file's `get_config()` returns one.

    Attributes:
      name: the run's folder is `runs/NAME`.
      task: components and loss.
      data: where batches come from.
      optimizer: optimizer and schedule.
      inputs: from a stored batch to what the task takes: intensities and augmentation.
      adapters: low-rank matrices beside the kernels of some linear layers; None for none.
      trainable: regex over parameter paths; what it does not match is frozen.
      groups: parameters with their own learning rate or weight decay.
      init_from: component -> run, or folder of the verb `convert`, to take its start from.
      evaluators: what is measured, by name.
      steps: optimizer steps.
      gradient_accumulation_steps: number of parts that a batch is computed in, one after the other,
        to save memory; the update is the same.
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
    inputs: Inputs = Inputs()
    adapters: Annotated[LoRA | None, tyro.conf.AvoidSubcommands] = None
    trainable: str = ".*"
    groups: tuple[Group, ...] = ()
    init_from: Mapping[str, str] = dataclasses.field(default_factory=dict)
    evaluators: Mapping[str, Evaluator] = dataclasses.field(default_factory=dict)
    steps: int = 100
    gradient_accumulation_steps: int = 1
    seed: int = 0
    mesh: tuple[int, int, int] = (-1, 1, 1)
    log_every: int = 10
    save_every: int = 1000
    keep: int = 2
    profile: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.data.batch_size % self.gradient_accumulation_steps:
            raise ConfigError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} does not divide "
                f"batch_size={self.data.batch_size}."
            )
        if self.gradient_accumulation_steps > 1 and self.task.no_accumulation:
            raise ConfigError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}: "
                f"{self.task.no_accumulation}. Cure: gradient_accumulation_steps=1, "
                'and more devices, a smaller batch or remat="full" in the encoders.'
            )
        if (
            min(
                self.steps,
                self.gradient_accumulation_steps,
                self.log_every,
                self.save_every,
                self.keep,
            )
            < 1
        ):
            raise ConfigError(
                "steps, gradient_accumulation_steps, log_every, save_every and keep start at 1."
            )
        if self.profile != (0, 0) and not 0 <= self.profile[0] < self.profile[1] <= self.steps:
            raise ConfigError(f"profile={self.profile} must be two rising steps of {self.steps}.")

    @property
    def adapted(self) -> Task | Adapted:
        """Returns the task as training sees it, adapters included."""
        return self.task if self.adapters is None else Adapted(self.task, self.adapters)

    def merged(self, params: Params) -> Params:
        """Returns parameters as the task takes them: adapters are merged into their kernels."""
        return params if self.adapters is None else self.adapters.merged(params)
