"""The evaluator of masked autoencoders: the error on hidden patches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from data_pipelines.datasets import open_dataset
from data_pipelines.datasets.records import Record
from data_pipelines.pipeline import Data
from m3djax.contracts import statistics
from m3djax.contracts.evaluator import Batch, Evaluator, Pass, Predictions, Subject
from m3djax.contracts.findings import EvaluationError, Findings, Picture
from m3djax.contracts.scores import OWN, Column, Scores
from m3djax.contracts.share import Share
from m3djax.contracts.units import Units
from m3djax.evaluate.loop import place, split_rows
from m3djax.evaluate.reconstruction.crops import FIELDS, HiddenCrops
from m3djax.evaluate.reconstruction.masked import METHODS, fill
from m3djax.evaluate.reconstruction.present import caption, present
from m3djax.evaluate.tiles import cut
from m3djax.inputs.inputs import ScaleIntensityRange
from m3djax.tasks.reconstructing import ReconstructingTask

MSE = "mse"


@dataclasses.dataclass(frozen=True)
class Reconstruction(Evaluator):
    """Evaluator of the error on hidden patches of held-out scans.

    Every scan is cut into crops of the training size; each voxel counts once. Patches of each crop
    are hidden as in training. The model and two baselines fill them in from the same visible
    voxels. The baselines are the mean of the visible voxels and the smooth fill-in (see `fill_in`).

    Studies in `studies` are reported one by one, with intervals over their crops. The first of them
    decides the test: it passes if the model beats the mean by more than the interval. With no
    studies given, all studies of the split count together, with intervals over studies.

    Attributes:
      dataset: folder that the verb `prepare` wrote; "": the dataset of the run.
      size: size of a crop in voxels along (D, H, W); zeros: the size in the run.
      every: steps between two evaluations during training; 0: only the verb `evaluate`.
      mesh: devices of a process along (data, fsdp, tensor); see `Evaluator`.
      split: split of the dataset.
      studies: study ids, of which the first decides the test; (): all studies together.
      draws: random masks per crop.
      pictures: largest number of studies with a picture.
      batch_size: crops per batch.
      seed: seed of the masks and of the intervals.
    """

    split: str = "test"
    studies: tuple[str, ...] = ()
    draws: int = 4
    pictures: int = 4
    batch_size: int = 32
    seed: int = 0

    @property
    def rows(self) -> int:
        """Returns the rows of a batch; see `Evaluator.rows`."""
        return self.batch_size

    def check(self, data: Data) -> None:
        """Raises if the split cannot be read; see `Evaluator.check`."""
        open_dataset(self.reading(data).sources[0].path, self.split)

    def check_task(self, task: Any) -> None:
        """Raises if the task is not a `ReconstructingTask`; see `Evaluator.check_task`."""
        if not isinstance(task, ReconstructingTask):
            raise EvaluationError(
                "Reconstruction measures tasks that fill in patches, such as MAE, and "
                f"{type(task).__name__} does not. Cure: leave this evaluator out of the config."
            )

    def passes(self, subject: Subject) -> Iterator[Pass]:
        """Yields one pass for each study; see `Evaluator.passes`.

        Raises:
          EvaluationError: a study is not in the split.
        """
        for record in self._records(subject):
            yield Pass(
                record["study_id"],
                subject,
                self._crops(subject, record),
                ("draw", "patient", "units"),
            )

    def predict(self, subject: Subject, batch: Batch) -> Mapping[str, jax.Array]:
        """Returns squared errors over the hidden voxels of crops; see `Evaluator.predict`."""
        fields = place(subject.mesh, batch, (*FIELDS, *subject.task.condition_fields))
        return fill(subject.task, subject.inputs, subject.params, fields).sums

    def score(self, subject: Subject, predictions: Mapping[str, Predictions]) -> Scores:
        """Returns the mean squared error of each crop over all masks; see `Evaluator.score`.

        Raises:
          EvaluationError: there is only one independent unit.
        """
        crops = {name: _of_crops(predicted) for name, predicted in predictions.items()}
        columns = []
        for group, studies in self._groups(predictions).items():
            sums = {n: np.concatenate([crops[s][n] for s in studies]) for n in ("count", *METHODS)}
            sample = [
                f"{study}/{n}" for study in studies for n in range(len(crops[study]["count"]))
            ]
            units = self._units(studies, [len(crops[study]["count"]) for study in studies])
            if len(units) < 2:
                raise EvaluationError(
                    f"{self.reading(subject.data).sources[0].path}, {group}: has only one crop of "
                    f"{self.reading(subject.data).size}, and an interval needs 2. "
                    "Cure: more studies in the split, and `studies` left empty."
                )
            count = sums["count"]
            for method in METHODS:
                error = np.divide(sums[method], count, np.full(len(count), np.nan), where=count > 0)
                columns.append(Column.of(group, MSE, units, sample, error, count, _method(method)))
        return Scores(tuple(columns))

    def present(
        self, subject: Subject, predictions: Mapping[str, Predictions], scores: Scores
    ) -> Findings:
        """Makes the report; see `Evaluator.present`."""
        task = subject.task
        groups = {
            name: self._numbers(name, scores, subject.inputs.window) for name in scores.groups()
        }
        units = str(list(predictions.values())[-1]["units"][0])
        kind = scores.columns[0].units.kind
        shown = self._pictures(subject)
        return present(groups, shown, units, kind, norm_pix=task.norm_pix)

    def _groups(self, predictions: Mapping[str, Predictions]) -> dict[str, list[str]]:
        """Returns the studies that are reported together, by the name of the group."""
        if not self.studies and len(predictions) > 1:
            return {f"all {len(predictions)} studies": list(predictions)}
        return {
            f"study {name} (patient {predicted['patient'][0]})": [name]
            for name, predicted in predictions.items()
        }

    def _units(self, studies: list[str], crops: list[int]) -> Units:
        """Returns the independent unit of every crop, in the order of the crops."""
        if len(studies) == 1:
            names = [f"{studies[0]}/{crop}" for crop in range(crops[0])]
            return Units.of(names, "crops", np.arange(crops[0]))
        study = np.repeat(np.arange(len(studies)), crops)
        return Units.of([studies[n] for n in study], "studies", study)

    def _crops(self, subject: Subject, record: Record) -> HiddenCrops:
        size = self.reading(subject.data).size
        return HiddenCrops(record, cut(record["image"], size), self.draws, self.seed)

    def _records(self, subject: Subject) -> Iterator[Record]:
        """Yields the named records in the order of their names, or all records of the split."""
        path = self.reading(subject.data).sources[0].path
        source = open_dataset(path, self.split)
        if not self.studies:
            yield from source
            return
        named = {r["study_id"]: r for r in source if r["study_id"] in self.studies}
        for study in self.studies:
            if study not in named:
                raise EvaluationError(
                    f"{path}: split {self.split!r} has no study {study!r}. "
                    "Cure: name studies of this split, or none to take all."
                )
            yield named[study]

    def _numbers(self, name: str, scores: Scores, window: ScaleIntensityRange) -> dict[str, Any]:
        """Returns the errors and gains of a group."""
        columns = {method: scores.column(name, MSE, _method(method)) for method in METHODS}
        own = columns["model"]
        draws = statistics.draw(len(own.units), seed=self.seed)
        mse = {method: column.mean(draws) for method, column in columns.items()}
        gains = {method: mse[method] - mse["model"] for method in METHODS if method != "model"}
        return {
            "units": len(own.units),
            "hidden_voxels": int(own.weight.sum()),
            "mse": {method: value.to_json() for method, value in mse.items()},
            "rmse": {method: v.value**0.5 * window.source_per_unit for method, v in mse.items()},
            "gain_over": {method: gain.to_json() for method, gain in gains.items()},
            **{f"beats_{method}": gain.interval[0] > 0 for method, gain in gains.items()},
        }

    def _pictures(self, subject: Subject) -> tuple[Picture, ...]:
        """Draws the first studies, with the patches of their first mask filled in."""
        # Imported late: it takes a second to import, and configs import this module.
        from m3djax.evaluate.reconstruction import sheet

        shown: list[Picture] = []
        for record in itertools.islice(self._records(subject), self.pictures):
            # A number, because a study id may be a path.
            file = f"{len(shown)}.png"
            crops = self._crops(subject, record)
            volumes = self._filled(subject, crops)
            sheet.draw(subject.folder / file, record, crops.tiles, volumes, subject.inputs.window)
            shown.append(Picture(file, caption(record)))
        return tuple(shown)

    def _filled(self, subject: Subject, crops: HiddenCrops) -> dict[str, np.ndarray]:
        """Returns `InpaintedBatch.volumes` of the first draw for every crop."""
        parts = []
        for batch in crops.first_draw(Share(split_rows(self.rows, subject.mesh))):
            filled = fill(
                subject.task, subject.inputs, subject.params, place(subject.mesh, batch, FIELDS)
            )
            parts.append({n: np.asarray(v)[batch["counts"]] for n, v in filled.volumes.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _method(name: str) -> str:
    """Returns the method of a column of scores."""
    return OWN if name == "model" else name


def _of_crops(predicted: Predictions) -> dict[str, np.ndarray]:
    """Returns the sums of every crop over all draws."""
    draws = int(predicted["draw"].max()) + 1
    return {
        name: predicted[name].astype(np.float64).reshape(draws, -1).sum(0)
        for name in ("count", *METHODS)
    }
