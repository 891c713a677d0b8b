"""The base class of most evaluators: one model on the crops of one split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from data_pipelines.datasets import open_dataset
from data_pipelines.pipeline import Data, Source
from data_pipelines.placement import WHOLE, Part
from m3djax.contracts.evaluator import Evaluator, Pass, Predictions, Subject
from m3djax.contracts.units import Units, independent
from m3djax.evaluate.samples import Crops


@dataclasses.dataclass(frozen=True)
class SplitEvaluator(Evaluator):
    """Evaluator of the crops of a split. Subclasses implement `predict` and `score`.

    Attributes:
      dataset: folder that the verb `prepare` wrote; "": the dataset of the run.
      size: size of a crop in voxels along (D, H, W); zeros: the size in the run.
      every: steps between two evaluations during training; 0: only the verb `evaluate`.
      mesh: devices of a process along (data, fsdp, tensor); see `Evaluator`.
      split: the split that is evaluated.
      part: part of each volume along D from which crops come; see `Source`.
      crops: crops per record.
      batch_size: crops per batch of a process.
      seed: seed of crops and intervals.
    """

    split: str = "test"
    part: Part = WHOLE
    crops: int = 1
    batch_size: int = 8
    seed: int = 0

    kept: ClassVar[tuple[str, ...]] = ("record", "crop", "place")
    """Fields of the samples that `score` gets with the predictions."""

    @property
    def rows(self) -> int:
        """Returns the rows of a batch; see `Evaluator.rows`."""
        return self.batch_size

    def check(self, data: Data) -> None:
        """Raises if the split cannot be read; see `Evaluator.check`."""
        open_dataset(self.source(data).path, self.split)

    def source(self, data: Data) -> Source:
        """Returns the dataset, split and part to evaluate; `data` is the run's."""
        return Source(self.reading(data).sources[0].path, self.split, part=self.part)

    def passes(self, subject: Subject) -> Iterable[Pass]:
        """Returns one pass: the model on all crops; see `Evaluator.passes`."""
        samples = Crops(
            self.reading(subject.data), self.source(subject.data), self.crops, self.seed
        )
        return [Pass(self.split, subject, samples, self.kept)]

    def units(self, subject: Subject, found: Predictions) -> tuple[Units, list[str]]:
        """Returns the independent units and the names of samples, for `Column.of`.

        Args:
          subject: the evaluated run.
          found: predictions with the fields record, crop and place.
        """
        source, size = self.source(subject.data), self.reading(subject.data).size
        patient = patients(source, found["record"])
        names = [
            f"{record}/{crop}" for record, crop in zip(found["record"], found["crop"], strict=True)
        ]
        return independent(patient, found["record"], found["place"], size), names


def patients(source: Source, record: Iterable[int]) -> list[str]:
    """Returns the patient of each record, for records given by their number in the split."""
    records = open_dataset(source.path, source.split, lazy=True)
    numbers = [int(number) for number in record]
    known = {number: records[number]["patient_id"] for number in set(numbers)}
    return [known[number] for number in numbers]
