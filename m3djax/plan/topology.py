"""Absent accelerators as targets of ahead-of-time compilation."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

import jax

from data_pipelines.errors import ConfigError
from m3djax.plan.chips import CHIPS, Chip

# By default libtpu requests the metadata of a TPU VM and locks the machine's TPU; it also warns if
# the kind of host is not set.
ENVIRONMENT = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more equal slices of TPU chips, or the GPUs of one host.

    Attributes:
      name: such as `v5e:4x4`, `v5p:4x4x4` or `h100:8`.
      slices: number of slices, which the data centre's network connects.
    """

    name: str
    slices: int = 1

    def __post_init__(self) -> None:
        family, sides = self._parsed()
        if family not in CHIPS:
            raise self._error(f"{family!r} is not one of {', '.join(CHIPS)}")
        pod = CHIPS[family].pod or (8,)
        if len(sides) != len(pod) or min(sides) < 1 or self.slices < 1:
            raise self._error(f"{family} needs {len(pod)} side(s); sides and slices start at 1")
        if any(side > longest for side, longest in zip(sorted(sides), sorted(pod), strict=True)):
            raise self._error(f"the largest slice of {family} is {'x'.join(map(str, pod))}")
        if self.is_gpu and self.slices > 1:
            raise self._error("several hosts of GPUs cannot be planned")

    @property
    def chip(self) -> Chip:
        """Returns the kind of its chips."""
        return CHIPS[self._parsed()[0]]

    @property
    def sides(self) -> tuple[int, ...]:
        """Returns the number of chips along each axis of one slice."""
        return self._parsed()[1]

    @property
    def size(self) -> int:
        """Returns the number of devices in all slices."""
        return math.prod(self.sides) * self.slices

    @property
    def is_gpu(self) -> bool:
        """Returns whether it consists of GPUs."""
        return not self.chip.pod

    def devices(self) -> list[jax.Device]:
        """Returns absent devices; programs can be compiled for them, but not run.

        Raises:
          ConfigError: the compiler is not installed, or does not support the slice.
        """
        if self.is_gpu:
            from m3djax.plan import h100  # imports its private hooks only when needed

            return h100.devices(self.size)
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError(
                f"{self.name}: planning for TPUs needs their compiler, the package libtpu, which "
                "runs on any x86 Linux. Cure: pip install -r requirements-plan.txt"
            )
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        from jax.experimental import topologies

        options: dict[str, object] = {"num_slices": self.slices} if self.slices > 1 else {}
        if self.chip is CHIPS["v4"]:
            options["chip_config_name"] = "megacore"  # one device per chip, as in training
        if any(side % 2 for side in self.sides[:2]):
            options["chips_per_host_bounds"] = (1, 1, 1)
        try:
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=self.name, **options
            )
        except jax.errors.JaxRuntimeError as error:
            raise self._error(str(error)) from error
        return list(description.devices)

    def _parsed(self) -> tuple[str, tuple[int, ...]]:
        match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", self.name)
        if not match:
            raise self._error("it does not have the form FAMILY:SIDExSIDE")
        return match[1], tuple(int(side) for side in match[2].split("x"))

    def _error(self, problem: str) -> ConfigError:
        return ConfigError(
            f"topology {self.name!r}: {problem}. Cure: for example v5e:4x4, v5p:4x4x4 or h100:8."
        )
