"""The evaluator that most others start from: one model, and the crops of one split."""

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
    """Measures the crops of a split. Subclasses implement `predict` and `score`.

    Attributes:
      dataset: folder that the verb `prepare` wrote; "" is that of the run.
      size: voxels along (D, H, W) of a crop; zeros are those of the run.
      every: steps between two evaluations during training; 0 evaluates only when asked.
      mesh: devices of a process along (data, fsdp, tensor); see `Evaluator`.
      split: whose records are measured.
      part: share of its volumes along D that crops come from; see `Source`.
      crops: crops of every record.
      batch_size: crops that a process predicts for at once.
      seed: of crops and intervals.
    """

    split: str = "test"
    part: Part = WHOLE
    crops: int = 1
    batch_size: int = 8
    seed: int = 0

    kept: ClassVar[tuple[str, ...]] = ("record", "crop", "place")
    """Fields of the samples that `score` gets beside the predictions."""

    @property
    def rows(self) -> int:
        """See `Evaluator.rows`."""
        return self.batch_size

    def check(self, data: Data) -> None:
        """See `Evaluator.check`."""
        open_dataset(self.source(data).path, self.split)

    def source(self, data: Data) -> Source:
        """Returns dataset, split and part that are measured; `data` is the run's."""
        return Source(self.reading(data).sources[0].path, self.split, part=self.part)

    def passes(self, subject: Subject) -> Iterable[Pass]:
        """See `Evaluator.passes`."""
        samples = Crops(
            self.reading(subject.data), self.source(subject.data), self.crops, self.seed
        )
        return [Pass(self.split, subject, samples, self.kept)]

    def units(self, subject: Subject, found: Predictions) -> tuple[Units, list[str]]:
        """Returns the independent units and the names of samples, for `Column.of`.

        Args:
          subject: the run that is measured.
          found: predictions with the fields record, crop and place.
        """
        source, size = self.source(subject.data), self.reading(subject.data).size
        patient = patients(source, found["record"])
        names = [
            f"{record}/{crop}" for record, crop in zip(found["record"], found["crop"], strict=True)
        ]
        return independent(patient, found["record"], found["place"], size), names


def patients(source: Source, record: Iterable[int]) -> list[str]:
    """Returns the patient of each of the numbered records of a split."""
    records = open_dataset(source.path, source.split, lazy=True)
    numbers = [int(number) for number in record]
    known = {number: records[number]["patient_id"] for number in set(numbers)}
    return [known[number] for number in numbers]
