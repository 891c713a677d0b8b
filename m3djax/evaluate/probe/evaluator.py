"""The evaluator of frozen features: a linear probe tells the organs of patches apart."""

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
    """Linear classification of patches by organ, on features of the frozen encoder.

    Trained on the scans of one split and asked about those of another. A patch takes part if one
    organ fills more than half of it, and an organ if both sides have enough such patches. The
    encoder sees whole crops; the same probe on an untrained encoder and on the patch's raw voxels
    tells what pretraining adds.

    Attributes:
      dataset: folder that the verb `prepare` wrote.
      size: voxels along (D, H, W) of a crop: those of training.
      train_split: split the probe is fitted on.
      train_studies: studies of it; () takes all that have masks.
      test_split: split the probe is asked about.
      test_studies: studies of it; () takes all that have masks.
      groups: (regex, name): organs that count as one.
      least: labelled patches that an organ needs on both sides.
      most: patches per organ that the probe is fitted on.
      untrained: encoders with random weights to compare with; their mean is reported, for one of
        them can do twice as well as another.
      batch_size: crops that are encoded at once.
      caveats: printed with the result.
      seed: of the untrained encoder, the choice of patches and the intervals.
      every: steps between two evaluations during training; 0 evaluates only when asked.
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
        """See `Evaluator.rows`."""
        return self.batch_size

    def check(self, data: Data) -> None:
        """See `Evaluator.check`."""
        for split in (self.train_split, self.test_split):
            open_dataset(self.reading(data).sources[0].path, split)

    def passes(self, subject: Subject) -> Iterator[Pass]:
        """See `Evaluator.passes`: the trained and the untrained encoders, on both sides.

        Raises:
          EvaluationError: the task has no encoder `vision`, a study is missing or has no mask, or
            the two sides have fewer than two organs in common.
        """
        task = subject.task
        if not isinstance(task.components().get("vision"), Encoder):
            raise EvaluationError(
                f"OrganProbe needs a task with a vision encoder, not a {type(task).__name__}. "
                "Cure: leave this evaluator out of the config."
            )
        sides = self._patches(subject)
        for name, params in self._encoders(subject):
            model = dataclasses.replace(subject, params=params)
            for side, samples in sides.items():
                yield Pass(f"{name} {side}", model, samples, KEPT)

    def predict(self, subject: Subject, batch: Batch) -> Mapping[str, jax.Array]:
        """See `Evaluator.predict`: tokens and voxels of the labelled patches of crops."""
        fields = place(subject.mesh, batch, FIELDS)
        return patch_features(subject.task, subject.inputs, subject.params, fields)

    def score(self, subject: Subject, predictions: Mapping[str, Predictions]) -> Scores:
        """See `Evaluator.score`: whether probes are right about the patches of the other side."""
        test = predictions[f"pretrained {TEST}"]
        organ, sample = flat(test, "organ"), flat(test, "sample")
        units = Units.of(flat(test, "block").tolist(), "blocks")
        columns = []
        for name, answers in self._answers(predictions).items():
            # Untrained encoders differ by chance: the mean over several of them stands for all.
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
        """See `Evaluator.present`."""
        fitted = flat(predictions[f"pretrained {TRAIN}"], "organ")
        return present(self._numbers(fitted, scores), self.caveats)

    def _encoders(self, subject: Subject) -> Iterator[tuple[str, params_lib.Params]]:
        """Yields the parameters of the trained encoder, and of untrained ones."""
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
        """Returns the organs that probes on each kind of features say the test patches show."""
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
        """Returns the labelled patches of both sides, of the organs they have in common."""
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
        """Returns the numbers; `fitted` are the organs of the patches of the training side."""
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
