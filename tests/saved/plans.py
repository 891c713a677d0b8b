"""Plans of the saved runs: `python -m tests.saved.plans OUT CASE ...` in a process of its own.

JAX keeps traces of inner functions. In a process that has run other meshes before, another program
may come out.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from pathlib import Path

import jax

from m3djax.plan import record
from m3djax.plan.compile import compile_for
from m3djax.plan.targets import TrainStep
from m3djax.plan.topology import Topology
from m3djax.runs import run_folder


def main(out: str, cases: list[str]) -> None:
    """Plans the train step of every case "RUN TOPOLOGY MESH" in the working directory."""
    jax.config.update("jax_platforms", "cpu")
    made = {}
    for case in cases:
        name, topology, mesh = case.split(" ", 2)
        experiment = run_folder.read_experiment(f"runs/{name}")
        target = TrainStep(dataclasses.replace(experiment, mesh=ast.literal_eval(mesh)))
        there = Topology(topology)
        made[case] = record.record(target, there, compile_for(target, there))
    Path(out).write_text(json.dumps(made))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
