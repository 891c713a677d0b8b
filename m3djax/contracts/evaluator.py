"""The base class of evaluators, and the types that evaluators take and return."""

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
    from m3djax.inputs.inputs import FieldInputs
    from m3djax.params import Params

Batch = Mapping[str, Any]
"""Fields of some samples in host memory, with the samples along the first axis.

"number" (b,) int is the number of the sample in each row. "counts" (b,) is False in padding rows.
"""
Predictions = dict[str, np.ndarray]
"""Predictions of a model and kept fields, by name: one row per sample, sorted by sample number."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model under evaluation, with its data, devices and folders.

    Attributes:
      task: the run's task; adapters are merged.
      inputs: turns stored batches into batches of the task: all fields of the run's data.
      params: one entry per component, on `mesh`, sharded as the sharding table says.
      data: the data of the run, as in training.
      mesh: devices of this process.
      run: folder of the run.
      folder: folder of the evaluator. It exists. The report shows the pictures in it.
    """

    task: Any
    inputs: FieldInputs
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
    """One pass of a model over a list of samples.

    Attributes:
      name: name of the pass, unique in the evaluator.
      subject: the model.
      samples: the samples to predict for.
      kept: fields of the batches to keep beside the predictions, such as the ground truth.
      key: all inputs of the predictions except the parameters, as JSON. Predictions with a key are
        stored in the evaluator's folder, and are read again while the key and the parameters stay
        the same. None: predictions are not stored.
    """

    name: str
    subject: Subject
    samples: Samples
    kept: tuple[str, ...] = ()
    key: Any = None


@dataclasses.dataclass(frozen=True)
class Evaluator(abc.ABC):
    """Base class of evaluators. Subclasses are frozen dataclasses and part of a run's config.

    A subclass defines the predictions and computes scores from them. `m3djax.evaluate.loop` does
    the rest: batches, processes, storage, the table of scores and the report.

    Attributes:
      dataset: folder that the verb `prepare` wrote; "" takes the dataset of the run.
      size: voxels along (D, H, W) of a crop; zeros take the size of the run.
      every: steps between two evaluations during training; 0 evaluates only on request.
      mesh: devices of a process along (data, fsdp, tensor), for `evaluate`. Along data every
        device holds the whole model. Use (1, 1, -1) for a model that is too large for one device.
    """

    dataset: str = ""
    size: tuple[int, int, int] = (0, 0, 0)
    every: int = 0
    mesh: tuple[int, int, int] = (-1, 1, 1)

    def reading(self, data: Data) -> Data:
        """Returns the run's data with the dataset and the crop size of this config.

        Args:
          data: the data of the run.
        """
        source, size = data.sources[0], self.size if any(self.size) else data.size
        source = dataclasses.replace(source, path=self.dataset or source.path)
        return dataclasses.replace(data, sources=(source,), size=size)

    @abc.abstractmethod
    def check(self, data: Data) -> None:
        """Opens the datasets, so that a missing one is found before training starts.

        Args:
          data: the data of the run.

        Raises:
          DataError: a dataset or a split is missing.
          ConfigError: the data lacks a field that the evaluator needs.
        """

    def check_task(self, task: Any) -> None:
        """Checks that the task fits, before training starts and before an evaluation.

        By default every task does.

        Args:
          task: the task of the run.

        Raises:
          EvaluationError: it does not fit this evaluator.
        """
        del task

    @property
    @abc.abstractmethod
    def rows(self) -> int:
        """Returns the batch size of one process.

        The evaluation loop rounds it up to a size that the mesh can split.
        """

    @abc.abstractmethod
    def passes(self, subject: Subject) -> Iterable[Pass]:
        """Yields the passes. Every process calls this and holds one pass at a time.

        Args:
          subject: the run under evaluation.

        Raises:
          EvaluationError: the samples do not fit this evaluator.
          DataError: a dataset cannot be read.
        """

    @abc.abstractmethod
    def predict(self, subject: Subject, batch: Batch) -> Mapping[str, Any]:
        """Returns the predictions for a batch: arrays with the samples along the first axis.

        Args:
          subject: the model of the pass; its mesh is the current one.
          batch: fields in host memory; `m3djax.evaluate.loop.place` puts them on the devices.
        """

    @abc.abstractmethod
    def score(self, subject: Subject, predictions: Mapping[str, Predictions]) -> Scores:
        """Returns the scores of all predictions. Only process 0 calls this.

        Args:
          subject: the run under evaluation.
          predictions: name of the pass -> its predictions, from all processes.

        Raises:
          EvaluationError: there are too few samples, or all belong to one independent unit.
        """

    def present(
        self, subject: Subject, predictions: Mapping[str, Predictions], scores: Scores
    ) -> Findings:
        """Returns the findings: by default the mean of every metric. Only process 0 calls this.

        Args:
          subject: the run under evaluation.
          predictions: as in `score`.
          scores: the result of `score`.
        """
        del subject, predictions
        return present_means(type(self).__name__, scores)
