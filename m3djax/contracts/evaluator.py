"""The contract of evaluators: what a model predicts, and how predictions are scored."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from m3djax.contracts.findings import Findings
from m3djax.contracts.scores import Scores, present_means
from m3djax.contracts.share import Share

if TYPE_CHECKING:
    from etils import epath
    from jax.sharding import Mesh

    from data_pipelines.pipeline import Data
    from m3djax.inputs.inputs import Inputs
    from m3djax.params import Params

Batch = Mapping[str, Any]
"""Fields of some samples, the samples along the first axis, in the memory of the host.

"number" (b,) int says which sample a row is, "counts" (b,) is False in rows that fill up a batch.
"""
Predictions = dict[str, np.ndarray]
"""What a model predicts beside the fields that were kept, a row per sample, by rising number."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model that is evaluated, and the place where that happens.

    Attributes:
      task: the run's task; adapters are merged.
      inputs: turns stored batches into those of the task.
      params: one entry per component, on `mesh`, where the sharding table puts them.
      data: the data of the run, as in training.
      mesh: devices of this process.
      run: folder of the run.
      folder: folder of the evaluator; it exists, and the report shows its pictures.
    """

    task: Any
    inputs: Inputs
    params: Params
    data: Data
    mesh: Mesh
    run: epath.Path
    folder: epath.Path


class Samples(Protocol):
    """A list of samples."""

    def batches(self, share: Share) -> Iterable[Batch]:
        """Yields the batches of one process."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """One model that predicts for one list of samples.

    Attributes:
      name: tells the passes of an evaluator apart.
      subject: the model.
      samples: what it predicts for.
      kept: fields of the batches that stay beside the predictions, such as the truth.
      key: what the predictions depend on besides the parameters, as JSON; predictions with a key
        are stored in the evaluator's folder and read as long as neither changes. None stores none.
    """

    name: str
    subject: Subject
    samples: Samples
    kept: tuple[str, ...] = ()
    key: Any = None


@dataclasses.dataclass(frozen=True)
class Evaluator(abc.ABC):
    """Measures a model. Subclasses are frozen dataclasses, and part of a run's config.

    Subclasses say what is predicted, and how predictions become scores. `m3djax.evaluate.loop` does
    the rest: batches, processes, storage, the table of scores and the report.

    Attributes:
      dataset: folder that the verb `prepare` wrote; "" is that of the run.
      size: voxels along (D, H, W) of a crop; zeros are those of the run.
      every: steps between two evaluations during training; 0 evaluates only when asked.
      mesh: devices of a process along (data, fsdp, tensor), for `evaluate`. Along data every
        device holds the whole model; (1, 1, -1) is for a model that is too large for that.
    """

    dataset: str = ""
    size: tuple[int, int, int] = (0, 0, 0)
    every: int = 0
    mesh: tuple[int, int, int] = (-1, 1, 1)

    def reading(self, data: Data) -> Data:
        """Returns how samples are read: the run's data, with the dataset and size of this config.

        Args:
          data: the data of the run.
        """
        source, size = data.sources[0], self.size if any(self.size) else data.size
        source = dataclasses.replace(source, path=self.dataset or source.path)
        return dataclasses.replace(data, sources=(source,), size=size)

    @abc.abstractmethod
    def check(self, data: Data) -> None:
        """Opens what will be read, so that a missing dataset is found before hours of training.

        Args:
          data: the data of the run.

        Raises:
          DataError: a dataset or a split is not there.
          ConfigError: the data does not hold what is measured.
        """

    @property
    @abc.abstractmethod
    def rows(self) -> int:
        """Returns the number of samples that a process predicts for at once.

        It is rounded up to what the mesh can split.
        """

    @abc.abstractmethod
    def passes(self, subject: Subject) -> Iterable[Pass]:
        """Yields what is predicted; every process calls this, and holds one pass at a time.

        Args:
          subject: the run that is measured.

        Raises:
          EvaluationError: the run's task does not fit this evaluator.
          DataError: a dataset cannot be read.
        """

    @abc.abstractmethod
    def predict(self, subject: Subject, batch: Batch) -> Mapping[str, Any]:
        """Returns what a model says about a batch: arrays with the samples along the first axis.

        Args:
          subject: the model of the pass; its mesh is the current one.
          batch: fields in host memory; `m3djax.evaluate.loop.place` puts them on the devices.
        """

    @abc.abstractmethod
    def score(self, subject: Subject, predictions: Mapping[str, Predictions]) -> Scores:
        """Returns the scores of all predictions. Process 0 alone calls this.

        Args:
          subject: the run that is measured.
          predictions: name of the pass -> its predictions of all processes.

        Raises:
          EvaluationError: the samples are too few, or of one independent unit.
        """

    def present(
        self, subject: Subject, predictions: Mapping[str, Predictions], scores: Scores
    ) -> Findings:
        """Returns the findings: by default the mean of every metric. Process 0 alone calls this.

        Args:
          subject: the run that is measured.
          predictions: as in `score`.
          scores: what `score` returned.
        """
        del subject, predictions
        return present_means(type(self).__name__, scores)
