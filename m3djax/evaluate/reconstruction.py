"""How well a masked autoencoder fills in what it does not see, against two baselines."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float

from data_pipelines.datasets import open_dataset
from m3djax.augment import Window
from m3djax.evaluate import pictures, statistics
from m3djax.evaluate.base import Evaluator
from m3djax.evaluate.findings import EvaluationError, Findings, Picture, Table
from m3djax.evaluate.masked import METHODS, Filled, fill
from m3djax.evaluate.statistics import Estimate
from m3djax.evaluate.tiles import Tiles, batches, cut
from m3djax.models.patches import Size
from m3djax.params import Params
from m3djax.step import sample_keys
from m3djax.tasks.mae import MAE

Record = dict[str, Any]
_NAMES = {
    "model": "model",
    "mean": "mean of the crop's visible voxels",
    "fill_in": "smooth fill-in (diffusion)",
}


@dataclasses.dataclass(frozen=True)
class Reconstruction(Evaluator):
    """Error on hidden patches of held-out scans.

    Every scan is cut into crops of the training size that together count each voxel once. In each
    crop patches are hidden as in training, and filled in by the model and by two baselines that see
    the same: the mean of the crop's visible voxels, and the smooth fill-in (see `fill_in`). The test
    is passed when the model beats the mean on the first study by more than the interval.

    Attributes:
      dataset: folder that `run.py prepare` wrote.
      size: voxels along (D, H, W) of a crop: those of training.
      split: of the dataset.
      studies: study ids, the one that decides first; () takes all.
      draws: random masks per crop.
      batch_size: crops that are computed at once.
      seed: of the masks and of the intervals.
      every: steps between two evaluations during training; 0 evaluates only when asked.
    """

    dataset: str
    size: Size
    split: str = "test"
    studies: tuple[str, ...] = ()
    draws: int = 4
    batch_size: int = 32
    seed: int = 0
    every: int = 0

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
        compiled = functools.partial(jax.jit(functools.partial(fill, task)), params)
        studies, shown = {}, []
        for number, record in enumerate(self._records()):
            tiles = cut(record["image"], self.size)
            filled = self._fill(compiled, record, tiles, number)
            name = record["study_id"]
            studies[name] = self._numbers(record, filled, task.intensity.window)
            picture = folder / f"{name}.png"
            _draw(picture, record, tiles, filled, task.intensity.window)
            shown.append(Picture(picture.name, _caption(record)))
        return _findings(task, studies, tuple(shown)).to_json()

    def _records(self) -> list[Record]:
        records = {record["study_id"]: record for record in open_dataset(self.dataset, self.split)}
        missing = [study for study in self.studies if study not in records]
        if missing:
            raise EvaluationError(
                f"{self.dataset}: split {self.split!r} has no study {', '.join(missing)}. "
                f"Cure: choose from {', '.join(records)}."
            )
        return [records[study] for study in self.studies or records]

    def _fill(
        self, compiled: Callable[[Any], Filled], record: Record, tiles: Tiles, number: int
    ) -> Filled:
        """Numbers of all draws, draw by draw; volumes of the first draw only."""
        count = len(tiles) * self.draws
        keys = sample_keys(jax.random.key(self.seed), number, count)
        rows = {
            "tile": np.arange(count) % len(tiles),
            "key": np.asarray(jax.random.key_data(keys)),
        }
        arrays = {"image": tiles.images[..., None], "inside": tiles.inside, "counts": tiles.first}
        volumes, sums = [], []
        for batch, valid in batches(rows, self.batch_size):
            tile = batch.pop("tile")
            batch |= {name: array[tile] for name, array in arrays.items()}
            for name in ("scale", "offset"):
                batch[name] = np.full(len(tile), record[name], np.float32)
            part = jax.tree.map(lambda leaf, n=valid: np.asarray(leaf)[:n], compiled(batch))
            sums.append(part.sums)
            if len(volumes) * self.batch_size < len(tiles):
                volumes.append(part.volumes)
        filled = Filled(_concatenate(volumes), _concatenate(sums))
        return filled.replace(volumes={n: v[: len(tiles)] for n, v in filled.volumes.items()})

    def _numbers(self, record: Record, filled: Filled, window: Window) -> dict[str, Any]:
        sums = {name: v.reshape(self.draws, -1).sum(0) for name, v in filled.sums.items()}
        draws = statistics.draw(len(sums["count"]), seed=self.seed)
        mse = {name: statistics.weighted_mean(sums[name], sums["count"], draws) for name in METHODS}
        gains = {name: mse[name] - mse["model"] for name in METHODS if name != "model"}
        return {
            "patient": record["patient_id"],
            "units": record["units"],
            "crops": len(sums["count"]),
            "hidden_voxels": int(sums["count"].sum()),
            "mse": {name: _json(value) for name, value in mse.items()},
            "rmse": {name: value.value**0.5 * window.hu_per_unit for name, value in mse.items()},
            "gain_over": {name: _json(gain) for name, gain in gains.items()},
            **{f"beats_{name}": gain.interval[0] > 0 for name, gain in gains.items()},
        }


def _findings(task: MAE, studies: dict[str, Any], shown: tuple[Picture, ...]) -> Findings:
    """What the numbers of all studies say; the first study decides."""
    first, decides = next(iter(studies.items()))
    mse = {name: value["value"] for name, value in decides["mse"].items()}
    verdicts = [
        f"Held-out study {first}: on hidden patches the model is off by {decides['rmse']['model']:.0f} "
        f"{decides['units']} (root mean square)."
    ]
    for name in ("mean", "fill_in"):
        gain = decides["gain_over"][name]
        verdicts.append(
            f"It {_verdict(gain['interval'])} the {_NAMES[name]}, which is off by "
            f"{decides['rmse'][name]:.0f} {decides['units']}."
        )
    caveats = [
        "The intervals (95 %, bootstrap over crops) say how much the result depends on which part of "
        "this scan is looked at; they say nothing about other patients.",
    ]
    if task.norm_pix:
        caveats.append(
            "The model predicts normalised patches: it was given the mean and the deviation of the "
            "true hidden patches, which the baselines were not. The comparison favours it."
        )
    return Findings(
        title="Reconstruction of hidden patches",
        numbers={"decides": first, **{f"mse_{n}": v for n, v in mse.items()}, "studies": studies},
        sentences=tuple(verdicts),
        tables=tuple(_table(name, study) for name, study in studies.items()),
        pictures=shown,
        caveats=tuple(caveats),
        passed=decides["beats_mean"],
    )


def _verdict(interval: list[float]) -> str:
    low, high = interval
    return "beats" if low > 0 else "loses to" if high < 0 else "cannot be told apart from"


def _table(name: str, study: dict[str, Any]) -> Table:
    def row(method: str) -> tuple[str, ...]:
        mse, gain = study["mse"][method], study["gain_over"].get(method)
        return (
            _NAMES[method],
            _with_interval(mse, ".4f"),
            f"{study['rmse'][method]:.0f}",
            _with_interval(gain, "+.4f") if gain else "",
        )

    return Table(
        f"Study {name} (patient {study['patient']})",
        ("filled in by", "mean squared error", f"RMSE, {study['units']}", "error above the model's"),
        tuple(row(method) for method in METHODS),
        f"{study['hidden_voxels']:,} hidden voxels in {study['crops']} crops. Squared errors in "
        "network units. In brackets: 95 % bootstrap over crops, paired in the last column.",
    )


def _with_interval(value: dict[str, Any], style: str) -> str:
    low, high = value["interval"]
    return f"{value['value']:{style}} [{low:{style}}, {high:{style}}]"


def _caption(record: Record) -> str:
    mm = " x ".join(f"{side:g}" for side in record["spacing"].tolist())
    return (
        f"Study {record['study_id']}, {mm} mm, first of the random masks. Hidden patches are filled "
        "in crop by crop: every crop is all that the model sees of the scan, hence the seams."
    )


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _json(value: Estimate) -> dict[str, Any]:
    return {"value": value.value, "interval": value.interval}


def _draw(path: epath.Path, record: Record, tiles: Tiles, filled: Filled, window: Window) -> None:
    """The whole scan, put together from its crops, in three planes."""
    volumes = {name: tiles.stitch(crops) for name, crops in filled.volumes.items()}
    truth = _values(window, volumes["truth"])
    columns = {
        "original": truth,
        "what the model sees": np.where(volumes["hidden"], np.nan, truth),
        "reconstruction": _values(window, volumes["model"]),
        "smooth fill-in": _values(window, volumes["fill_in"]),
    }
    shown = (window.low, window.high)
    middle = pictures.centre(truth, air=0.75 * window.low + 0.25 * window.high)
    pictures.three_planes(
        path, columns, spacing=record["spacing"], window=shown, at=middle, units=record["units"]
    )


def _values(window: Window, images: np.ndarray) -> np.ndarray:
    """Network units back to those of the data set."""
    unit = (images * window.std + window.mean - window.to[0]) / (window.to[1] - window.to[0])
    return window.low + unit * (window.high - window.low)
