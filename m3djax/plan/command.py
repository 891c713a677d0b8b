"""The verb `plan`."""

from __future__ import annotations

import json
from typing import Any

from data_pipelines.errors import ConfigError
from data_pipelines.files import write_whole
from m3djax.experiment import Experiment
from m3djax.mesh import sharding
from m3djax.plan.compile import OutOfMemory, compile_for
from m3djax.plan.fit import Search
from m3djax.plan.options import Options
from m3djax.plan.record import PlanRecord, record
from m3djax.plan.report import show
from m3djax.plan.targets import TrainStep, target_of
from m3djax.plan.topology import Topology


def run(config: Any, wanted: Options) -> None:
    """Makes a plan, prints it and writes it if `wanted.json` names a file."""
    made = plan(config, Topology(wanted.topology, wanted.slices), fit=wanted.fit)
    show(made)
    if wanted.json:
        write_whole(wanted.json, json.dumps(made, indent=1) + "\n")
        print(f"plan: {wanted.json}")


def plan(config: Any, topology: Topology, *, fit: bool = False) -> PlanRecord:
    """Compiles a program for absent devices and returns its memory needs and speed bounds.

    Args:
      config: an experiment, whose train step is planned and whose data need not exist; or another
        `Target`.
      topology: the devices.
      fit: whether to find the largest batch that leaves a tenth of the memory free.

    Raises:
      ConfigError: the config does not fit the topology, or the topology's compiler is not
        installed.
    """
    if fit:
        if not isinstance(config, Experiment):
            raise ConfigError("--fit finds the batch of a train step only. Cure: leave it out.")
        mesh = sharding.make_mesh(config.mesh, topology.devices())
        unit = mesh.shape["data"] * mesh.shape["fsdp"] * config.gradient_accumulation_steps
        search = Search(
            config, lambda e: compile_for(TrainStep(e), topology), topology.chip.memory, unit
        )
        config, step = search.run()
    else:
        try:
            step = compile_for(target_of(config), topology)
        except OutOfMemory as refused:
            raise ConfigError(
                f"{refused}; {topology.name} has {topology.chip.memory / 2**30:.2f} GiB. Cure: "
                "--fit, which finds the largest batch; or more remat, a larger "
                "gradient_accumulation_steps, or weights split over fsdp."
            ) from refused
    return record(target_of(config), topology, step)
