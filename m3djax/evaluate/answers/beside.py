"""Baselines: models that answer the same questions as the evaluated run."""

from __future__ import annotations

import dataclasses

from etils import epath

from m3djax.contracts.evaluator import Subject
from m3djax.runs import run_folder


@dataclasses.dataclass(frozen=True)
class Beside:
    """A baseline model beside the evaluated run.

    Attributes:
      run: folder of its run, or of converted weights; "": the evaluated run.
      untrained: whether to take its initial parameters, before the first step.
      blind: whether every volume is replaced by a blank one, to measure the answers that need only
        the question.
    """

    run: str = ""
    untrained: bool = False
    blind: bool = False

    def check(self) -> None:
        """Checks that the run exists, before other models take minutes to answer.

        Raises:
          RunError: there is no such run.
        """
        if self.run:
            run_folder.read_experiment(epath.Path(self.run))

    def open(self, own: Subject) -> Subject:
        """Opens the model on the mesh of the evaluated run.

        Args:
          own: the evaluated run.

        Raises:
          RunError: there is no such run.
          CheckpointError: it has no readable checkpoint.
        """
        if not self.run and not self.untrained:
            return own
        from m3djax.runs.model import Model  # imports Orbax, which configs do not need

        read = Model.untrained if self.untrained else Model.open
        found = read(epath.Path(self.run) if self.run else own.run, own.mesh)
        return dataclasses.replace(
            own,
            task=found.task,
            inputs=found.inputs,
            params=found.params,
            data=found.data,
        )
