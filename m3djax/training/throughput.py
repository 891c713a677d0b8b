"""Training speed, and the share of the devices' peak FLOP/s that training uses."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax

from data_pipelines.fields.base import Spatial
from m3djax.adapters import Adapted
from m3djax.contracts.task import Task
from m3djax.inputs.inputs import IMAGE
from m3djax.training import flops


class Meter:
    """Meter of training speed between two lines of metrics.

    Args:
      task: the task whose FLOPs are counted.
      spec: shapes of a batch.
      mesh: the devices, for their peak FLOP/s.
      trainable: regex of the paths of the trained parameters.
      spatial: kind and axes of each spatial array; see `Data.spatial`.
    """

    def __init__(
        self,
        task: Task | Adapted,
        spec: Mapping[str, jax.ShapeDtypeStruct],
        mesh: jax.sharding.Mesh,
        trainable: str = ".*",
        spatial: Mapping[str, Spatial] = IMAGE,
    ) -> None:
        self._batch_size = next(iter(spec.values())).shape[0]
        self._flops = flops.model_flops(task, spec, trainable, spatial)
        self._peak = flops.peak(mesh)
        self._last: int | None = None
        self._since, self._waited = time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside the block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def read(self, step: int) -> dict[str, float]:
        """Returns the numbers since the last call.

        The first call returns none, because its time includes the compilation.
        """
        now, numbers = time.perf_counter(), {}
        if self._last is not None and step > self._last:
            seconds, steps = now - self._since, step - self._last
            numbers = {
                "volumes_per_second": steps * self._batch_size / seconds,
                "data_wait": self._waited / seconds,
                "mfu": steps * self._flops / seconds / self._peak,
            }
        self._last, self._since, self._waited = step, now, 0.0
        return numbers
