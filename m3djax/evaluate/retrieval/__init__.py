"""Which report belongs to this volume, and which volume to this report?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Self

import numpy as np
import tyro
from etils import epath

from data_pipelines.crops import WHOLE, Part
from data_pipelines.datasets import open_dataset
from data_pipelines.errors import ConfigError
from data_pipelines.pipeline import Data, Source
from m3djax.evaluate import statistics
from m3djax.evaluate.base import Evaluator
from m3djax.evaluate.findings import EvaluationError, Picture
from m3djax.evaluate.retrieval.pairs import Pairs, read_pairs
from m3djax.evaluate.retrieval.ranking import chance, ranks
from m3djax.evaluate.retrieval.text import present
from m3djax.params import Params
from m3djax.tasks.clip import Clip

DIRECTIONS = ("image_to_text", "text_to_image")


@dataclasses.dataclass(frozen=True)
class Retrieval(Evaluator):
    """Recall at k and median rank in both directions, with intervals over patients.

    Where all samples are of one patient, intervals are over regions of the scans, each as large as
    the network's input, and the report says so.

    Equal captions are equally right, and ties count against the model. M3D's own numbers
    (BAAI-DCAI/M3D, Bench/eval/eval_itr.py) are those of the splits "test100", "test500", "test1k"
    and "released_test" (2,000) of M3D-Cap; where captions repeat, theirs count one copy as right.

    Attributes:
      dataset: folder that `run.py prepare` wrote.
      size: voxels along (D, H, W) of the network's input: those of training.
      splits: pools to search in: each split is one.
      parts: split -> share of its volumes along D that crops come from; see `Source`. Splits that
        are not named are taken whole.
      pools: further pools: so many samples of each split, drawn at random, the smaller ones parts
        of the larger ones.
      at: the k of R@k; those that are not below a pool's size are left out.
      crops: crops of every record.
      data: how samples are cut and tokenised; None is as in training.
      batch_size: pairs that are encoded at once.
      pass_at: the k for which recall in the whole first split must exceed chance by more than its
        interval, in both directions; 0 tests nothing.
      queries: queries of each direction on the sheet of the first split; 0 draws none.
      caveats: printed with the result.
      seed: of crops, pools, the queries on the sheet and intervals.
      every: steps between two evaluations during training; 0 evaluates only when asked.
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

    def for_data(self, data: Data) -> Self:
        """See `Evaluator.for_data`."""
        bound = super().for_data(self.data or data)
        reading = dataclasses.replace(
            self.data or data, size=bound.size, batch_size=self.batch_size
        )
        return dataclasses.replace(bound, data=reading)

    def check(self) -> None:
        """See `Evaluator.check`."""
        assert self.data is not None, "for_data fills it in"
        if self.data.text is None:
            raise ConfigError("Retrieval needs data with text. Cure: set data.text.")
        self.data.text.tokens.check()
        for split in self.splits:
            open_dataset(self.dataset, split)

    def run(self, task: Any, params: Params, folder: epath.Path) -> dict[str, Any]:
        """See `Evaluator.run`.

        Raises:
          EvaluationError: the task has no two towers, or a split has text of one patient in one
            place only.
          DataError: the dataset cannot be read.
        """
        if not isinstance(task, Clip):
            raise EvaluationError(
                f"Retrieval measures Clip runs, and the task is a {type(task).__name__}. "
                "Cure: leave this evaluator out of the config."
            )
        self.check()
        assert self.data is not None
        task.check(self.data)
        found: dict[str, Any] = {}
        notes: list[str] = list(self.caveats)
        shown: list[Picture] = []
        for split in self.splits:
            source = Source(self.dataset, split, part=self.parts.get(split, WHOLE))
            pairs = read_pairs(
                task, params, self.data, source, folder, crops=self.crops, seed=self.seed
            )
            if pairs.without:
                notes.append(f"{split}: {pairs.without} samples without text were left out.")
            if self.queries and not shown:
                shown = self._sheet(split, pairs, folder)
            for name, pool in self._pools(split, pairs):
                found[name] = self._measure(name, pool)
            notes += [
                f"{split}: has {len(pairs)} samples, no pool of {size}."
                for size in self.pools
                if size > len(pairs)
            ]
        return present(found, tuple(shown), tuple(notes), self.pass_at).to_json()

    def _pools(self, split: str, pairs: Pairs) -> list[tuple[str, Pairs]]:
        """The split itself, and the random pools of it."""
        order = np.random.default_rng(self.seed).permutation(len(pairs))
        sizes = [size for size in self.pools if size < len(pairs)]
        drawn = [(f"{split}, {size} drawn", pairs.take(np.sort(order[:size]))) for size in sizes]
        return [(split, pairs), *drawn]

    def _measure(self, name: str, pairs: Pairs) -> dict[str, Any]:
        """The numbers of one pool."""
        patients, regions = (len(np.unique(x)) for x in (pairs.patient, pairs.region))
        units = patients if patients > 1 else regions
        if units < 2:
            raise EvaluationError(
                f"{self.dataset}, {name}: has {len(pairs)} samples with text in {regions} places, "
                "and an interval needs 2. Cure: another split, more `crops`, or more scans."
            )
        unit = np.unique(pairs.region if patients < 2 else pairs.patient, return_inverse=True)[1]
        draws = statistics.draw(units, seed=self.seed)
        ids, weight = pairs.text_id, np.bincount(unit).astype(float)
        sides = {
            "image_to_text": (pairs.images, pairs.texts),
            "text_to_image": (pairs.texts, pairs.images),
        }
        numbers: dict[str, Any] = {
            "samples": len(pairs),
            "patients": patients,
            "regions": regions,
            "captions": len(np.unique(ids)),
        }
        ks = [k for k in self.at if k < len(pairs)] or [min(self.at)]
        numbers["chance"] = {f"R@{k}": chance(ids, ids, k) for k in ks}
        for direction, (queries, candidates) in sides.items():
            rank = ranks(queries, candidates, ids, ids)
            numbers[direction] = {
                f"R@{k}": statistics.weighted_mean(
                    np.bincount(unit, rank <= k), weight, draws
                ).to_json()
                for k in ks
            }
            numbers[direction]["median_rank"] = statistics.median(rank, unit, draws).to_json()
        return numbers

    def _sheet(self, split: str, pairs: Pairs, folder: epath.Path) -> list[Picture]:
        """Some queries of both directions with the five that the model finds nearest."""
        # Here, for those who only read a config: drawing takes a second to import.
        from m3djax.evaluate.retrieval import sheet

        assert self.data is not None and self.data.text is not None
        rng = np.random.default_rng(self.seed)
        rows = np.sort(rng.permutation(len(pairs))[: self.queries])
        return sheet.draw(pairs, rows, self.data.text.tokens, split, folder)
