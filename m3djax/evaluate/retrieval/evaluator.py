"""The evaluator of retrieval between volumes and texts, in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import tyro
from jaxtyping import Array

from data_pipelines.datasets import open_dataset
from data_pipelines.errors import ConfigError
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.placement import WHOLE, Part
from m3djax.contracts import statistics
from m3djax.contracts.evaluator import Batch, Evaluator, Pass, Predictions, Subject
from m3djax.contracts.findings import EvaluationError, Findings, Picture
from m3djax.contracts.scores import Column, Scores
from m3djax.evaluate.fingerprint import reading_parts
from m3djax.evaluate.loop import place
from m3djax.evaluate.retrieval.embed import FIELDS, embed
from m3djax.evaluate.retrieval.pairs import DIRECTIONS, KEPT, Pairs
from m3djax.evaluate.retrieval.present import present
from m3djax.evaluate.retrieval.ranking import chance
from m3djax.evaluate.samples import Crops
from m3djax.tasks.embedding import EmbeddingTask

RANK = "rank"


@dataclasses.dataclass(frozen=True)
class Retrieval(Evaluator):
    """Evaluator of recall at k and median rank in both directions, with intervals over patients.

    With only one patient, the intervals are over regions of the scans, each as large as the
    network's input, and the report says so.

    Equal captions are equally right, and ties count against the model. M3D reports (BAAI-DCAI/M3D,
    Bench/eval/eval_itr.py) the splits "test100", "test500", "test1k" and "released_test" (2,000) of
    M3D-Cap. If captions repeat, M3D counts only one copy as right.

    Attributes:
      dataset: folder that the verb `prepare` wrote.
      size: size of the network's input in voxels along (D, H, W), as in training.
      splits: splits of the dataset; each is a pool to search in.
      parts: split -> part of each volume along D from which crops come; see `Source`. Other splits
        use whole volumes.
      pools: sizes of further pools: random samples of each split. Smaller pools are parts of larger
        ones.
      at: the k of R@k; those not below a pool's size are left out.
      crops: crops per record.
      data: config of crops and texts; None: as in training.
      batch_size: pairs per batch.
      pass_at: the k of the test: recall in the whole first split must exceed chance by more than
        its interval, in both directions; 0: no test.
      queries: queries of each direction in the pictures of the first split; 0: no pictures.
      caveats: sentences that are printed with the result.
      seed: seed of crops, pools, queries in pictures and intervals.
      every: steps between two evaluations during training; 0: only the verb `evaluate`.
      mesh: devices of a process along (data, fsdp, tensor); see `Evaluator`.
    """

    splits: tuple[str, ...] = ("test",)
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    pools: tuple[int, ...] = ()
    at: tuple[int, ...] = (1, 5, 10, 50, 100)
    crops: int = 1
    data: Annotated[Data | None, tyro.conf.AvoidSubcommands] = None
    batch_size: int = 32
    pass_at: int = 0
    queries: int = 4
    caveats: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.splits or not self.at or min((*self.at, *self.pools, self.crops)) < 1:
            raise ConfigError("splits and at must not be empty; at, pools and crops start at 1.")
        if other := sorted(set(self.parts) - set(self.splits)):
            raise ConfigError(f"parts: {other[0]!r} is none of splits={self.splits}.")
        if self.pass_at and self.pass_at not in self.at:
            raise ConfigError(f"pass_at={self.pass_at} is none of at={self.at}.")

    @property
    def rows(self) -> int:
        """Returns the rows of a batch; see `Evaluator.rows`."""
        return self.batch_size

    def reading(self, data: Data) -> Data:
        """Returns the data to read; see `Evaluator.reading`."""
        return super().reading(self.data or data)

    def check(self, data: Data) -> None:
        """Raises if the data has no text or a split cannot be read; see `Evaluator.check`."""
        reading = self.reading(data)
        reading.field("text", Text).tokens.check()
        for split in self.splits:
            open_dataset(reading.sources[0].path, split)

    def check_task(self, task: Any) -> None:
        """Raises if the task is not an `EmbeddingTask`; see `Evaluator.check_task`."""
        if not isinstance(task, EmbeddingTask):
            raise EvaluationError(
                "Retrieval measures tasks that embed volumes and texts, such as Clip, and "
                f"{type(task).__name__} does not. Cure: leave this evaluator out of the config."
            )

    def passes(self, subject: Subject) -> Iterator[Pass]:
        """Yields one pass for each split, whose vectors are cached; see `Evaluator.passes`."""
        reading = self.reading(subject.data)
        subject.task.check(reading)
        for split in self.splits:
            source = self._source(subject, split)
            key = reading_parts(subject, reading, source, self.crops, self.seed)
            samples = Crops(reading, source, self.crops, self.seed)
            yield Pass(split, subject, samples, KEPT, key)

    def predict(self, subject: Subject, batch: Batch) -> Mapping[str, Array]:
        """Returns unit vectors, and small slices of the volumes; see `Evaluator.predict`."""
        fields = place(subject.mesh, batch, (*FIELDS, *subject.task.condition_fields))
        return embed(subject.task, subject.inputs, subject.params, fields)

    def score(self, subject: Subject, predictions: Mapping[str, Predictions]) -> Scores:
        """Returns rank and hits at k of the right answer to each query; see `Evaluator.score`.

        Raises:
          EvaluationError: a split has text on only one place of one patient.
        """
        columns = []
        for name, pairs in self._all_pools(subject, predictions):
            units = pairs.units()
            if len(units) < 2:
                raise EvaluationError(
                    f"{self._source(subject).path}, {name}: has {len(pairs)} samples with text in "
                    f"{pairs.regions} places, and an interval needs 2. Cure: another split, more "
                    "`crops`, or more scans."
                )
            for direction, rank in pairs.ranks().items():
                hits = {f"{direction}_R@{k}": rank <= k for k in self._at(pairs)}
                for metric, value in {**hits, f"{direction}_{RANK}": rank}.items():
                    columns.append(Column.of(name, metric, units, pairs.names(), value))
        return Scores(tuple(columns))

    def present(
        self, subject: Subject, predictions: Mapping[str, Predictions], scores: Scores
    ) -> Findings:
        """Makes the report; see `Evaluator.present`."""
        found, notes = {}, list(self.caveats)
        for name, pairs in self._all_pools(subject, predictions):
            found[name] = self._numbers(name, pairs, scores)
        for split, predicted in predictions.items():
            count = int(np.sum(predicted["report_valid"]))
            if without := len(predicted["report_valid"]) - count:
                notes.append(f"{split}: {without} samples without text were left out.")
            notes += [
                f"{split}: has {count} samples, no pool of {size}."
                for size in self.pools
                if size > count
            ]
        shown = self._sheet(subject, predictions) if self.queries else ()
        return present(found, shown, tuple(notes), self.pass_at)

    def _source(self, subject: Subject, split: str = "") -> Source:
        path = self.reading(subject.data).sources[0].path
        return Source(path, split or self.splits[0], part=self.parts.get(split, WHOLE))

    def _all_pools(
        self, subject: Subject, predictions: Mapping[str, Predictions]
    ) -> Iterator[tuple[str, Pairs]]:
        """Yields the pools of every split by name."""
        size = self.reading(subject.data).size
        for split, predicted in predictions.items():
            yield from self._pools(split, Pairs.of(predicted, self._source(subject, split), size))

    def _at(self, pairs: Pairs) -> list[int]:
        """Returns the k of R@k for a pool."""
        return [k for k in self.at if k < len(pairs)] or [min(self.at)]

    def _pools(self, split: str, pairs: Pairs) -> list[tuple[str, Pairs]]:
        """Returns the pool of the whole split, and random pools of its samples."""
        order = np.random.default_rng(self.seed).permutation(len(pairs))
        sizes = [size for size in self.pools if size < len(pairs)]
        drawn = [(f"{split}, {size} drawn", pairs.take(np.sort(order[:size]))) for size in sizes]
        return [(split, pairs), *drawn]

    def _numbers(self, name: str, pairs: Pairs, scores: Scores) -> dict[str, Any]:
        """Returns the numbers of one pool."""
        units = pairs.units()
        draws, ids = statistics.draw(len(units), seed=self.seed), pairs.text_id
        numbers: dict[str, Any] = {
            "samples": len(pairs),
            "patients": pairs.patients,
            "regions": pairs.regions,
            "captions": len(np.unique(ids)),
            "chance": {f"R@{k}": chance(ids, ids, k) for k in self._at(pairs)},
        }
        for direction in DIRECTIONS:
            recall = {
                f"R@{k}": scores.column(name, f"{direction}_R@{k}").mean(draws).to_json()
                for k in self._at(pairs)
            }
            rank = scores.column(name, f"{direction}_{RANK}").value
            median = statistics.median(rank, units.number, draws)
            numbers[direction] = {**recall, "median_rank": median.to_json()}
        return numbers

    def _sheet(
        self, subject: Subject, predictions: Mapping[str, Predictions]
    ) -> tuple[Picture, ...]:
        """Draws some queries of both directions, each with its five nearest candidates."""
        # Imported late: it takes a second to import, and configs import this module.
        from m3djax.evaluate.retrieval import sheet

        split, pairs = next(self._all_pools(subject, predictions))
        text = self.reading(subject.data).field("text", Text)
        rows = np.random.default_rng(self.seed).permutation(len(pairs))[: self.queries]
        return tuple(sheet.draw(pairs, np.sort(rows), text.tokens, split, subject.folder))
