"""The base class of tasks that give the blocks of their encoder further inputs."""

from __future__ import annotations

from typing import ClassVar

import jax

from m3djax.contracts.task import Batch, Task
from m3djax.models.conditions import NONE, Conditions
from m3djax.params import Params


class ConditionedTask(Task):
    """A task whose encoder can depend on more than the volume, such as a route of experts.

    Attributes:
      condition_fields: fields of the batch that `conditions` needs. Evaluators read them as well.
    """

    condition_fields: ClassVar[tuple[str, ...]] = ()

    def conditions(self, params: Params, batch: Batch) -> Conditions:
        """Returns the conditions of the blocks that encode volumes; by default there are none.

        Args:
          params: one entry per component. `generate.volumes.VolumeReader` leaves `llm` out, and
            `first` passes none.
          batch: the batch, with a row for each sample and at least `condition_fields`.
        """
        del params, batch
        return NONE

    def first(self, batch: Batch) -> Conditions:
        """Returns the conditions of the first sample of a batch, for `init`."""
        return jax.tree.map(lambda leaf: leaf[:1], self.conditions({}, batch))
