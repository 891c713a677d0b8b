"""The evaluator of frozen features: a linear probe classifies patches by organ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from data_pipelines.datasets import open_dataset
from data_pipelines.pipeline import Data
from m3djax import params as params_lib
from m3djax.contracts import statistics
from m3djax.contracts.evaluator import Batch, Evaluator, Pass, Predictions, Subject
from m3djax.contracts.findings import EvaluationError, Findings
from m3djax.contracts.scores import OWN, Column, Scores
from m3djax.contracts.units import Units
from m3djax.evaluate.loop import place
from m3djax.evaluate.probe.crops import FIELDS, KEPT, LabelledCrops, flat
from m3djax.evaluate.probe.features import patch_features
from m3djax.evaluate.probe.organs import Groups, label_patches
from m3djax.evaluate.probe.present import present
from m3djax.evaluate.probe.sides import common_organs, masked_records, thin_out
from m3djax.mesh import sharding
from m3djax.models.encoder import Encoder

TRAIN, TEST = "train", "test"
CORRECT = "accuracy"
_METHODS = {"pretrained": OWN, "untrained": "untrained", "raw": "raw"}
"""Names in results -> methods of scores."""


@dataclasses.dataclass(frozen=True)
class OrganProbe(Evaluator):
    """Evaluator that classifies patches by organ with a linear probe on the frozen encoder.

    The probe is fitted on the scans of one split and tested on those of another. A patch takes part
    if one organ fills more than half of it. An organ takes part if both splits have enough such
    patches. The encoder sees whole crops. The same probe on untrained encoders and on raw voxels
    shows the effect of pretraining.

    Attributes:
      dataset: folder that the verb `prepare` wrote.
      size: size of a crop in voxels along (D, H, W), as in training.
      train_split: split on which the probe is fitted.
      train_studies: studies of the training split; (): all studies with masks.
      test_split: split on which the probe is tested.
      test_studies: studies of the test split; (): all studies with masks.
      groups: (regex, name): organs that count as one.
      least: smallest number of labelled patches per organ in both splits.
      most: largest number of patches per organ for the fit.
      untrained: number of encoders with random weights to compare with. Their mean is reported,
        because one of them can be twice as good as another.
      batch_size: crops per batch.
      caveats: sentences that are printed with the result.
      seed: seed of the untrained encoders, the choice of patches and the intervals.
      every: steps between two evaluations during training; 0: only the verb `evaluate`.
      mesh: devices of a process along (data, fsdp, tensor); see `Evaluator`.
    """

    train_split: str = "train"
    train_studies: tuple[str, ...] = ()
    test_split: str = "test"
    test_studies: tuple[str, ...] = ()
    groups: Groups = ()
    least: int = 20
    most: int = 300
    untrained: int = 5
    batch_size: int = 32
    caveats: tuple[str, ...] = ()
    seed: int = 0

    @property
    def rows(self) -> int:
        """Returns the rows of a batch; see `Evaluator.rows`."""
        return self.batch_size

    def check(self, data: Data) -> None:
        """Raises if a split cannot be read; see `Evaluator.check`."""
        for split in (self.train_split, self.test_split):
            open_dataset(self.reading(data).sources[0].path, split)

    def check_task(self, task: Any) -> None:
        """Raises if the task has no encoder `vision`; see `Evaluator.check_task`."""
        if not isinstance(task.components().get("vision"), Encoder):
            raise EvaluationError(
                f"OrganProbe needs a task with a vision encoder, not a {type(task).__name__}. "
                "Cure: leave this evaluator out of the config."
            )

    def passes(self, subject: Subject) -> Iterator[Pass]:
        """Yields a pass for each encoder, trained or not, and each split; see `Evaluator.passes`.

        Raises:
          EvaluationError: a study is missing or has no mask, or the two splits have fewer than
            two organs in common.
        """
        sides = self._patches(subject)
        for name, params in self._encoders(subject):
            model = dataclasses.replace(subject, params=params)
            for side, samples in sides.items():
                yield Pass(f"{name} {side}", model, samples, KEPT)

    def predict(self, subject: Subject, batch: Batch) -> Mapping[str, jax.Array]:
        """Returns tokens and voxels of the labelled patches of crops; see `Evaluator.predict`."""
        fields = place(subject.mesh, batch, FIELDS)
        return patch_features(subject.task, subject.inputs, subject.params, fields)

    def score(self, subject: Subject, predictions: Mapping[str, Predictions]) -> Scores:
        """Scores the probes on each patch of the test split; see `Evaluator.score`."""
        test = predictions[f"pretrained {TEST}"]
        organ, sample = flat(test, "organ"), flat(test, "sample")
        units = Units.of(flat(test, "block").tolist(), "blocks")
        columns = []
        for name, answers in self._answers(predictions).items():
            # Untrained encoders differ by chance, so their mean is scored.
            right = np.mean([answer == organ for answer in answers], axis=0)
            for each in np.unique(organ):
                one = organ == each
                columns.append(
                    Column.of(
                        str(each), CORRECT, units.take(one), sample[one], right[one],
                        method=_METHODS[name],
                    )
                )  # fmt: skip
        return Scores(tuple(columns))

    def present(
        self, subject: Subject, predictions: Mapping[str, Predictions], scores: Scores
    ) -> Findings:
        """Makes the report; see `Evaluator.present`."""
        fitted = flat(predictions[f"pretrained {TRAIN}"], "organ")
        return present(self._numbers(fitted, scores), self.caveats)

    def _encoders(self, subject: Subject) -> Iterator[tuple[str, params_lib.Params]]:
        """Yields name and parameters of the trained encoder, then of the untrained encoders."""
        yield "pretrained", subject.params
        size = self.reading(subject.data).size
        spec = {"image": jax.ShapeDtypeStruct((1, *size, 1), np.int16)}

        def init(key: jax.Array) -> params_lib.FlatParams:
            return params_lib.flatten(subject.task.init(key, spec))

        for number in range(self.untrained):
            leaves = sharding.sharded(
                subject.mesh, subject.task, init, jax.random.key(self.seed + number)
            )
            yield f"untrained {number}", params_lib.unflatten(leaves)

    def _answers(self, predictions: Mapping[str, Predictions]) -> dict[str, list[np.ndarray]]:
        """Fits probes on each kind of features; returns their answers on the test patches."""
        # Imported late: sklearn takes seconds to import, and configs import this module.
        from m3djax.evaluate.probe.linear import fit_linear

        def ask(encoder: str, features: str) -> np.ndarray:
            known, asked = (predictions[f"{encoder} {side}"] for side in (TRAIN, TEST))
            probe = fit_linear(flat(known, features), flat(known, "organ"), flat(known, "block"))
            return probe.predict(flat(asked, features))

        return {
            "pretrained": [ask("pretrained", "tokens")],
            "untrained": [ask(f"untrained {n}", "tokens") for n in range(self.untrained)],
            "raw": [ask("pretrained", "voxels")],
        }

    def _patches(self, subject: Subject) -> dict[str, LabelledCrops]:
        """Returns the labelled patches of both splits, for their common organs."""
        reading = self.reading(subject.data)
        path, patch = reading.sources[0].path, subject.task.vision.stride
        sides = [
            masked_records(path, self.train_split, self.train_studies, self.groups),
            masked_records(path, self.test_split, self.test_studies, self.groups),
        ]
        organs = sorted({name for side in sides for _, names in side for name in names.values()})
        train, test = (
            [label_patches(record, names, organs, reading.size, patch) for record, names in side]
            for side in sides
        )
        enough = common_organs(train, test, len(organs), self.least)
        if len(enough) < 2:
            raise EvaluationError(
                f"{path}: splits {self.train_split!r} and {self.test_split!r} share "
                f"{len(enough)} organs with {self.least} labelled patches each (in two places of "
                "the training side), and a probe needs 2. Cure: scans whose masks share organs, or "
                "a lower `least`."
            )
        kept = [organs[index] for index in enough]
        train, test = ([part.renumber(enough) for part in side] for side in (train, test))
        train = thin_out(train, self.most, self.seed)
        return {TRAIN: LabelledCrops(train, kept), TEST: LabelledCrops(test, kept)}

    def _numbers(self, fitted: np.ndarray, scores: Scores) -> dict[str, Any]:
        """Returns the numbers; `fitted` has the organ of each patch of the training split."""
        organs = scores.groups()
        columns = {
            name: [scores.column(organ, CORRECT, method) for organ in organs]
            for name, method in _METHODS.items()
        }
        sums = {name: [one.sums() for one in some] for name, some in columns.items()}
        correct = {name: np.stack([s for s, _ in some], axis=1) for name, some in sums.items()}
        total = np.stack([weight for _, weight in sums["pretrained"]], axis=1)
        draws = statistics.draw(len(total), seed=self.seed)
        accuracy = {
            name: statistics.balanced_accuracy(right, total, draws)
            for name, right in correct.items()
        }
        gains = {name: accuracy["pretrained"] - accuracy[name] for name in ("untrained", "raw")}
        recall = {name: right.sum(0) / total.sum(0) for name, right in correct.items()}
        return {
            "chance": 1 / len(organs),
            "blocks": len(total),
            "accuracy": {name: value.to_json() for name, value in accuracy.items()},
            "gain_over": {name: gain.to_json() for name, gain in gains.items()},
            "organs": {
                organ: {
                    "fitted": int((fitted == organ).sum()),
                    "asked": int(total[:, index].sum()),
                    "recall": {name: float(values[index]) for name, values in recall.items()},
                }
                for index, organ in enumerate(organs)
            },
        }
