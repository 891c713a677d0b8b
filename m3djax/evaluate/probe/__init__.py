"""Which organ does a patch show? Asked of frozen features by a linear classifier."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from etils import epath

from data_pipelines.datasets import open_dataset
from m3djax.evaluate import statistics
from m3djax.evaluate.base import Evaluator
from m3djax.evaluate.findings import EvaluationError
from m3djax.evaluate.probe.features import patch_features
from m3djax.evaluate.probe.organs import (
    Groups,
    LabelledPatches,
    group_names,
    joined,
    label_patches,
)
from m3djax.evaluate.probe.text import present
from m3djax.models.patches import Size
from m3djax.params import Params


@dataclasses.dataclass(frozen=True)
class OrganProbe(Evaluator):
    """Linear classification of patches by organ, on features of the frozen encoder.

    Trained on the scans of one split and asked about those of another. A patch takes part if one
    organ fills more than half of it, and an organ if both sides have enough such patches. The
    encoder sees whole crops; the same probe on an untrained encoder and on the patch's raw voxels
    tells what pretraining adds.

    Attributes:
      dataset: folder that `run.py prepare` wrote.
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

    def check(self) -> None:
        """See `Evaluator.check`."""
        for split in (self.train_split, self.test_split):
            open_dataset(self.dataset, split)

    def run(self, task: Any, params: Params, folder: epath.Path) -> dict[str, Any]:
        """See `Evaluator.run`.

        Raises:
          EvaluationError: the task has no encoder `vision`, a study is missing or has no mask, or
            the two sides have fewer than two organs in common.
          DataError: the dataset cannot be read.
        """
        if not (hasattr(task, "vision") and hasattr(task, "intensity")):
            raise EvaluationError(
                f"OrganProbe needs a task with a vision encoder, not a {type(task).__name__}. "
                "Cure: leave this evaluator out of the config."
            )
        train, test, organs = self._patches(task.vision.stride)
        spec = {"image": jax.ShapeDtypeStruct((1, *self.size, 1), np.int16)}
        init = jax.jit(lambda key: task.init(key, spec))
        untrained = [init(jax.random.key(self.seed + n)) for n in range(self.untrained)]
        features = [self._features(task, params, train, test)]
        features += [self._features(task, weights, train, test) for weights in untrained]
        answers = {
            "pretrained": [self._ask(train, *features[0][0])],
            "untrained": [self._ask(train, *tokens) for tokens, _ in features[1:]],
            "raw": [self._ask(train, *features[0][1])],
        }
        numbers = self._numbers(train, test, organs, answers)
        return present(numbers, self.caveats).to_json()

    def _ask(
        self, train: list[LabelledPatches], known: np.ndarray, asked: np.ndarray
    ) -> np.ndarray:
        """Answers to the features `asked` of a probe that is fitted on the features `known`."""
        # Here, for those who only read a config: sklearn takes seconds to import.
        from m3djax.evaluate.probe.linear import fit_linear

        probe = fit_linear(known, joined(train, "organ"), joined(train, "block"))
        return probe.predict(asked)

    def _features(
        self,
        task: Any,
        params: Params,
        train: list[LabelledPatches],
        test: list[LabelledPatches],
    ) -> list[list[np.ndarray]]:
        """Tokens, then voxels; of each the rows of the training and of the held-out patches."""
        sides = [
            [patch_features(task, params, part, self.batch_size) for part in side]
            for side in (train, test)
        ]
        return [
            [np.concatenate([part[kind] for part in side]) for side in sides] for kind in (0, 1)
        ]

    def _patches(
        self, patch: Size
    ) -> tuple[list[LabelledPatches], list[LabelledPatches], list[str]]:
        """Labelled patches of both sides, and the organs they have in common."""
        sides = [
            self._records(self.train_split, self.train_studies),
            self._records(self.test_split, self.test_studies),
        ]
        organs = sorted({name for side in sides for _, names in side for name in names.values()})
        train, test = (
            [label_patches(record, names, organs, self.size, patch) for record, names in side]
            for side in sides
        )
        counts = [
            np.bincount(joined(side, "organ"), minlength=len(organs)) for side in (train, test)
        ]
        # Cross-validation leaves blocks out: an organ in a single one could not be learned there.
        spread = np.array([_blocks_of(train, index) for index in range(len(organs))])
        enough = np.flatnonzero((np.minimum(*counts) >= self.least) & (spread > 1))
        if len(enough) < 2:
            raise EvaluationError(
                f"{self.dataset}: splits {self.train_split!r} and {self.test_split!r} share "
                f"{len(enough)} organs with {self.least} labelled patches each (in two places of "
                "the training side), and a probe needs 2. Cure: scans whose masks share organs, or "
                "a lower `least`."
            )
        kept = [organs[index] for index in enough]
        train = self._thin_out([part.renumber(enough) for part in train])
        return train, [part.renumber(enough) for part in test], kept

    def _records(
        self, split: str, studies: tuple[str, ...]
    ) -> list[tuple[dict[str, Any], dict[int, str]]]:
        source = open_dataset(self.dataset, split)
        names = group_names(source.mask_names, self.groups)
        records = {record["study_id"]: record for record in source if record["mask_valid"]}
        missing = [study for study in studies if study not in records]
        if missing or not records:
            raise EvaluationError(
                f"{self.dataset}: split {split!r} has no mask for "
                f"{', '.join(missing) or 'any study'}. "
                f"Cure: masks, or studies that have one: {', '.join(records) or 'none'}."
            )
        return [(records[study], names) for study in studies or records]

    def _thin_out(self, parts: list[LabelledPatches]) -> list[LabelledPatches]:
        """At most `most` patches per organ over all parts, chosen at random."""
        organ = joined(parts, "organ")
        order = np.random.default_rng(self.seed).permutation(len(organ))
        chosen = np.zeros(len(organ), bool)
        for index in np.unique(organ):
            chosen[order[organ[order] == index][: self.most]] = True
        ends = np.cumsum([len(part.organ) for part in parts])[:-1]
        return [part.take(keep) for part, keep in zip(parts, np.split(chosen, ends), strict=True)]

    def _numbers(
        self,
        train: list[LabelledPatches],
        test: list[LabelledPatches],
        organs: list[str],
        answers: dict[str, list[np.ndarray]],
    ) -> dict[str, Any]:
        truth = joined(test, "organ")
        blocks, block = np.unique(joined(test, "block"), return_inverse=True)
        draws = statistics.draw(len(blocks), seed=self.seed)
        classes = truth[:, None] == np.arange(len(organs))
        member = (block == np.arange(len(blocks))[:, None]).astype(float)
        total = member @ classes
        # Untrained encoders differ by chance: the mean over several of them stands for all.
        correct = {
            name: np.stack([member @ (classes & (answer == truth)[:, None]) for answer in several])
            for name, several in answers.items()
        }
        accuracy = {
            name: statistics.mean([statistics.balanced_accuracy(r, total, draws) for r in right])
            for name, right in correct.items()
        }
        gains = {name: accuracy["pretrained"] - accuracy[name] for name in ("untrained", "raw")}
        recall = {name: right.mean(0).sum(0) / total.sum(0) for name, right in correct.items()}
        fitted = np.bincount(joined(train, "organ"), minlength=len(organs))
        return {
            "chance": 1 / len(organs),
            "blocks": len(blocks),
            "accuracy": {name: value.to_json() for name, value in accuracy.items()},
            "gain_over": {name: gain.to_json() for name, gain in gains.items()},
            "organs": {
                organ: {
                    "fitted": int(fitted[index]),
                    "asked": int(total[:, index].sum()),
                    "recall": {name: float(values[index]) for name, values in recall.items()},
                }
                for index, organ in enumerate(organs)
            },
        }


def _blocks_of(parts: list[LabelledPatches], organ: int) -> int:
    return sum(len(np.unique(part.block[part.organ == organ])) for part in parts)
