"""Models that are measured beside a run, by the same questions."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath
from jax.sharding import Mesh

from data_pipelines.pipeline import Data
from m3djax import run_folder
from m3djax.params import Params
from m3djax.runs import model as runs_model


@dataclasses.dataclass(frozen=True)
class Model:
    """What can be asked.

    Attributes:
      task: its task; adapters are merged.
      params: its parameters.
      data: of its run: its tokenizer puts the questions.
    """

    task: Any
    params: Params
    data: Data


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

    def model(self, folder: epath.Path, own: Model, mesh: Mesh) -> Model:
        """Reads it.

        Args:
          folder: of the evaluator, in the folder of the run that is measured.
          own: the model of that run.
          mesh: where its parameters go.

        Raises:
          RunError: there is no such run.
          CheckpointError: it has no readable checkpoint.
        """
        if not self.run and not self.untrained:
            return own
        place = epath.Path(self.run) if self.run else folder.parent.parent
        read = runs_model.Model.untrained if self.untrained else runs_model.Model.open
        found = read(place, mesh)
        return Model(found.task, found.params, found.data)
