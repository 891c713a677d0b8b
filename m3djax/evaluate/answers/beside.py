"""Models that answer the same questions as the run that is measured."""

from __future__ import annotations

import dataclasses

from etils import epath

from m3djax.contracts.evaluator import Subject
from m3djax.runs import run_folder
from m3djax.runs.model import Model


@dataclasses.dataclass(frozen=True)
class Beside:
    """A model beside the one that is measured.

    Attributes:
      run: folder of its run, or of converted weights; "" is the run that is measured.
      untrained: as it was before its first step, with what it started from.
      blind: shown volumes without content: how much it knows from the questions alone.
    """

    run: str = ""
    untrained: bool = False
    blind: bool = False

    def check(self) -> None:
        """Looks for the run, before others spend minutes on their answers.

        Raises:
          RunError: there is no such run.
        """
        if self.run:
            run_folder.read_experiment(epath.Path(self.run))

    def open(self, own: Subject) -> Subject:
        """Opens the model on the mesh of the run that is measured.

        Args:
          own: the run that is measured.

        Raises:
          RunError: there is no such run.
          CheckpointError: it has no readable checkpoint.
        """
        if not self.run and not self.untrained:
            return own
        read = Model.untrained if self.untrained else Model.open
        found = read(epath.Path(self.run) if self.run else own.run, own.mesh)
        return dataclasses.replace(
            own,
            task=found.task,
            inputs=found.experiment.inputs,
            params=found.params,
            data=found.data,
        )
