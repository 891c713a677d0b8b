"""Search for the largest batch that fits into memory.

The TPU compiler refuses a program that is too big within seconds and says how much memory it needs.
To compile a program that fits takes minutes. Memory grows almost linearly with the batch. So the
search fits a line to two refused batches, and compiles the batch that the line predicts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from data_pipelines.errors import ConfigError
from m3djax.experiment import Experiment
from m3djax.plan.compile import OutOfMemory, Step

FREE = 0.1  # share of the memory that a config should leave free

# Compiles the step for a batch; raises OutOfMemory.
Compile = Callable[[Experiment], Step]
Say = Callable[[str], None]


@dataclasses.dataclass
class Search:
    """A search for the largest batch that leaves a tenth of the memory free.

    Attributes:
      experiment: the config, with any batch.
      compile: function that compiles the step of a config.
      memory: bytes that a program may use.
      unit: the batch is a multiple of this.
      say: function that prints progress.
    """

    experiment: Experiment
    compile: Compile
    memory: int
    unit: int
    say: Say = print

    def run(self) -> tuple[Experiment, Step]:
        """Returns the config with the largest batch, and its compiled step.

        Raises:
          ConfigError: not even one unit fits.
        """
        room = (1 - FREE) * self.memory
        units = 8 * max(1, self.experiment.data.batch_size // self.unit)
        far = (units, self._needed(units))
        while far[1] < self.memory:
            far = (4 * far[0], self._needed(4 * far[0]))
        # The proportional estimate is too large, because some memory does not depend on the batch.
        # A batch half as large again is refused for certain, and is near enough for a line.
        units = math.ceil(1.5 * far[0] * room / far[1])
        units = units if units < far[0] else 2 * far[0]
        near = (units, self._needed(units))
        while True:
            slope = (far[1] - near[1]) / (far[0] - near[0])
            fits = math.floor(near[0] + (room - near[1]) / slope) if slope > 0 else 0
            fits = min(fits, (near if near[1] > room else far)[0] - 1)
            if fits < 1:
                raise ConfigError(
                    f"not even a batch of {self.unit} leaves {FREE:.0%} of the memory free. Cure: "
                    "more remat, a larger gradient_accumulation_steps, or weights split over fsdp."
                )
            self.say(f"predicted batch {fits * self.unit}: compiling")
            experiment = self._with(fits)
            try:
                step = self.compile(experiment)
                if step.memory.needed <= room:
                    return experiment, step
                near = (fits, step.memory.needed)
            except OutOfMemory as refused:
                near = (fits, refused.needed)

    def _with(self, units: int) -> Experiment:
        data = dataclasses.replace(self.experiment.data, batch_size=units * self.unit)
        return dataclasses.replace(self.experiment, data=data)

    def _needed(self, units: int) -> int:
        try:
            needed = self.compile(self._with(units)).memory.needed
        except OutOfMemory as refused:
            needed = refused.needed
        self.say(f"batch {units * self.unit}: {needed / 2**30:.2f} GiB per device")
        return needed
