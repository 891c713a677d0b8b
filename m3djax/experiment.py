"""The config of a run, as one tree of dataclasses and modules."""

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
    """The config of a training run. The verb `train` runs it; `get_config()` of a file returns it.

    Attributes:
      name: name of the run; its folder is `runs/NAME`.
      task: components and loss.
      data: source of the batches.
      optimizer: optimizer and schedule.
      inputs: transform of stored batches into batches of the task: intensities and augmentation.
      adapters: low-rank adapters of some linear layers; None for none.
      trainable: regex for the start of parameter paths; all other parameters are frozen.
      groups: parameters with their own learning rate or weight decay.
      init_from: component -> run, or folder of the verb `convert`, with its initial parameters.
      evaluators: evaluators by name.
      steps: optimizer steps.
      gradient_accumulation_steps: number of parts of a batch, which are computed in turn to save
        memory; the update is the same.
      seed: seed of everything random.
      mesh: devices along (data, fsdp, tensor); -1 takes the remaining devices.
      log_every: steps between two lines of metrics.
      save_every: steps between two checkpoints.
      keep: number of checkpoints to keep.
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
        if not isinstance(self.evaluators, Mapping):
            raise ConfigError(
                f"evaluators is a {type(self.evaluators).__name__}. Cure: a dict "
                '{"NAME": evaluator}.'
            )
        for field in ("steps", "gradient_accumulation_steps", "log_every", "save_every", "keep"):
            if (value := getattr(self, field)) < 1:
                raise ConfigError(f"{field}={value} is not positive. Cure: at least 1.")
        if self.data.batch_size % self.gradient_accumulation_steps:
            raise ConfigError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} does not divide "
                f"batch_size={self.data.batch_size}. Cure: a divisor of the batch size."
            )
        if self.gradient_accumulation_steps > 1 and self.task.no_accumulation:
            raise ConfigError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}: "
                f"{self.task.no_accumulation}. Cure: gradient_accumulation_steps=1, "
                'and more devices, a smaller batch or remat="full" in the encoders.'
            )
        if self.profile != (0, 0) and not 0 <= self.profile[0] < self.profile[1] <= self.steps:
            raise ConfigError(
                f"profile={self.profile} is not a range of steps. Cure: two increasing steps "
                f"between 0 and {self.steps}."
            )

    @property
    def adapted(self) -> Task | Adapted:
        """Returns the task as training uses it, with adapters if there are any."""
        return self.task if self.adapters is None else Adapted(self.task, self.adapters)

    def merged(self, params: Params) -> Params:
        """Returns the parameters for the bare task: adapters are merged into the kernels."""
        return params if self.adapters is None else self.adapters.merged(params)
