"""One process of a run: `python -m tests.multiprocess.child JSON`, see `Orders`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import sys

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Orders:
    """The settings of a child process.

    Attributes:
      dataset: prepared folder.
      name: of the run.
      steps: where training ends.
      save_every: steps between checkpoints.
      mesh: as in a config.
      devices: simulated ones of each process.
      torus: the mesh goes round, as on a TPU slice: it visits every process more than once.
      broken_from: process 1 cannot read its batches from this step on.
      measured: crops that are measured every three steps, and once more after training.
    """

    dataset: str
    name: str
    steps: int = 6
    save_every: int = 3
    mesh: tuple[int, int, int] = (-1, 1, 1)
    devices: int = 2
    torus: bool = False
    broken_from: int = -1
    measured: int = 0


def main(orders: Orders) -> None:
    from m3djax import cli
    from m3djax.config import registry
    from m3djax.evaluate.run import evaluate
    from m3djax.mesh import distributed, sharding
    from m3djax.training.train import train
    from tests import tiny
    from tests.multiprocess.measured import Brightness

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", orders.devices)
    cli.set_up_jax()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # as the verbs do
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with distributed.together():
        if orders.torus:
            go_round(sharding)
        changes = {"steps": orders.steps, "save_every": orders.save_every, "mesh": orders.mesh}
        if orders.measured:
            registry.allow("tests")
            changes["evaluators"] = {"brightness": Brightness(crops=orders.measured, every=3)}
        experiment = tiny.experiment(orders.dataset, name=orders.name, **changes)
        rows = sharding.process_rows(sharding.make_mesh(experiment.mesh), 8)
        batch = next(experiment.data.batches(experiment.seed, 0, rows))
        told = {
            "process": jax.process_index(),
            "processes": jax.process_count(),
            "rows": rows,
            "sums": [int(image.sum(dtype=np.int64)) for image in batch["image"]],
        }
        print(json.dumps(told), flush=True)
        if orders.broken_from >= 0 and jax.process_index() == 1:
            break_data(orders.broken_from)
        folder = train(experiment)
        if orders.measured:
            evaluate(folder)


def go_round(sharding) -> None:
    make, devices = sharding.make_mesh, jax.devices()
    order = [*devices[::2], *devices[1::2]]
    sharding.make_mesh = lambda shape, given=None: make(shape, given or order)


def break_data(step: int) -> None:
    from data_pipelines.errors import DataError
    from data_pipelines.pipeline import Data

    batches = Data.batches

    def broken(self, seed, start, rows):
        yield from itertools.islice(batches(self, seed, start, rows), step - start)
        raise DataError("shard-7", "cannot be read any more", "mend the disk")

    Data.batches = broken


if __name__ == "__main__":
    from data_pipelines.errors import UserError

    try:
        main(Orders(**json.loads(sys.argv[1])))
    except UserError as error:
        sys.exit(f"run.py train: {error}")
