"""How well a masked autoencoder fills in what it does not see, against two baselines."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from data_pipelines.datasets import open_dataset
from m3djax.augment import Window
from m3djax.evaluate import statistics
from m3djax.evaluate.base import Evaluator
from m3djax.evaluate.findings import EvaluationError, Picture
from m3djax.evaluate.reconstruction.masked import METHODS, Filled, fill
from m3djax.evaluate.reconstruction.text import caption, present
from m3djax.evaluate.tiles import Tiles, batches, cut
from m3djax.params import Params
from m3djax.step import sample_keys
from m3djax.tasks.mae import MAE

Record = dict[str, Any]
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reconstruction(Evaluator):
    """Error on hidden patches of held-out scans.

    Every scan is cut into crops of the training size that together count each voxel once. In each
    crop patches are hidden as in training, and filled in by the model and by two baselines that
    see the same: the mean of the crop's visible voxels, and the smooth fill-in (see `fill_in`).
    Studies that are named are reported one by one, with intervals over their crops, and the first
    decides whether the test is passed: when the model beats the mean by more than the interval.
    Otherwise all studies of the split count together, with intervals over studies.

    Attributes:
      split: of the dataset.
      studies: study ids, the one that decides first; () takes all of them together.
      draws: random masks per crop.
      pictures: of so many studies at most.
      batch_size: crops that are computed at once.
      seed: of the masks and of the intervals.
    """

    split: str = "test"
    studies: tuple[str, ...] = ()
    draws: int = 4
    pictures: int = 4
    batch_size: int = 32
    seed: int = 0

    def check(self) -> None:
        """See `Evaluator.check`."""
        open_dataset(self.dataset, self.split)

    def run(self, task: Any, params: Params, folder: epath.Path) -> dict[str, Any]:
        """See `Evaluator.run`.

        Raises:
          EvaluationError: the run is no masked autoencoder, or a study is not there.
          DataError: the dataset cannot be read.
        """
        if not isinstance(task, MAE):
            raise EvaluationError(
                f"Reconstruction measures MAE runs, and the task is a {type(task).__name__}. "
                "Cure: leave this evaluator out of the config."
            )
        compiled = functools.partial(fill, task, params)
        window = task.intensity.window
        measured: dict[str, Arrays] = {}
        shown: list[Picture] = []
        units, patients = "", {}
        for record in self._records():
            tiles = cut(record["image"], self.size)
            volumes, sums = self._fill(compiled, record, tiles)
            name, units = record["study_id"], record["units"]
            measured[name], patients[name] = sums, record["patient_id"]
            if len(shown) < self.pictures:
                # Numbered: a study id may be a path.
                file = f"{len(shown)}.png"
                _draw(folder / file, record, tiles, volumes, window)
                shown.append(Picture(file, caption(record)))
        if self.studies or len(measured) == 1:
            groups = {f"study {n} (patient {patients[n]})": sums for n, sums in measured.items()}
            kind = "crops"
        else:
            per_study = [{n: v.sum(keepdims=True) for n, v in s.items()} for s in measured.values()]
            groups, kind = {f"all {len(measured)} studies": _joined(per_study)}, "studies"
        numbers = {name: self._numbers(name, sums, window) for name, sums in groups.items()}
        return present(numbers, tuple(shown), units, kind, norm_pix=task.norm_pix).to_json()

    def _records(self) -> Iterator[Record]:
        """The named records in the order of their names, or one after the other all there are."""
        source = open_dataset(self.dataset, self.split)
        if not self.studies:
            yield from source
            return
        named = {r["study_id"]: r for r in source if r["study_id"] in self.studies}
        for study in self.studies:
            if study not in named:
                raise EvaluationError(
                    f"{self.dataset}: split {self.split!r} has no study {study!r}. "
                    "Cure: name studies of this split, or none to take all."
                )
            yield named[study]

    def _fill(
        self, compiled: Callable[[Any], Filled], record: Record, tiles: Tiles
    ) -> tuple[Arrays, Arrays]:
        """`Filled.volumes` for the first draw, and `Filled.sums` over all draws, of every crop."""
        count = len(tiles) * self.draws
        # By name, so that a study's masks do not depend on which others are measured.
        name = zlib.crc32(record["study_id"].encode())
        keys = sample_keys(jax.random.key(self.seed), jnp.uint32(name), count)
        rows = {
            "tile": np.arange(count) % len(tiles),
            "key": np.asarray(jax.random.key_data(keys)),
            "scale": np.full(count, record["scale"], np.float32),
            "offset": np.full(count, record["offset"], np.float32),
        }
        arrays = {"image": tiles.images[..., None], "inside": tiles.inside, "counts": tiles.first}
        volumes: list[Arrays] = []
        sums: list[Arrays] = []
        for batch, valid in batches(rows, self.batch_size):
            tile = batch.pop("tile")
            filled = compiled(batch | {name: array[tile] for name, array in arrays.items()})
            sums.append(_first(filled.sums, valid))
            if len(volumes) * self.batch_size < len(tiles):
                volumes.append(_first(filled.volumes, valid))
        totals = {
            name: part.astype(np.float64).reshape(self.draws, -1).sum(0)
            for name, part in _joined(sums).items()
        }
        return _first(_joined(volumes), len(tiles)), totals

    def _numbers(self, name: str, sums: Arrays, window: Window) -> dict[str, Any]:
        """Errors and gains of what belongs together, from sums per independent unit."""
        count = sums["count"]
        if len(count) < 2:
            raise EvaluationError(
                f"{self.dataset}, {name}: is one single crop of {self.size}, so no interval can be "
                "given. Cure: more studies in the split, and `studies` left empty."
            )
        draws = statistics.draw(len(count), seed=self.seed)
        mse = {method: statistics.weighted_mean(sums[method], count, draws) for method in METHODS}
        gains = {method: mse[method] - mse["model"] for method in METHODS if method != "model"}
        return {
            "units": len(count),
            "hidden_voxels": int(count.sum()),
            "mse": {method: value.to_json() for method, value in mse.items()},
            "rmse": {method: v.value**0.5 * window.hu_per_unit for method, v in mse.items()},
            "gain_over": {method: gain.to_json() for method, gain in gains.items()},
            **{f"beats_{method}": gain.interval[0] > 0 for method, gain in gains.items()},
        }


def _first(arrays: Mapping[str, Any], count: int) -> Arrays:
    return {name: np.asarray(array)[:count] for name, array in arrays.items()}


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _draw(path: epath.Path, record: Record, tiles: Tiles, crops: Arrays, window: Window) -> None:
    """The whole scan, put together from its crops, in three planes."""
    # Here, for those who only read a config: drawing takes a second to import.
    from m3djax.evaluate import pictures

    volumes = {name: tiles.stitch(part) for name, part in crops.items()}
    truth = np.asarray(window.inverse(volumes["truth"]))
    columns = {
        "original": truth,
        "what the model sees": np.where(volumes["hidden"], np.nan, truth),
        "reconstruction": np.asarray(window.inverse(volumes["model"])),
        "smooth fill-in": np.asarray(window.inverse(volumes["fill_in"])),
    }
    pictures.three_planes(
        path,
        columns,
        spacing=record["spacing"],
        window=(window.low, window.high),
        at=pictures.centre(truth, air=0.75 * window.low + 0.25 * window.high),
        units=record["units"],
    )
