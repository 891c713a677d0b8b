"""What a plan says: the record that is written as JSON, and its printed form."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from m3djax import experiment as experiment_lib
from m3djax import flops
from m3djax.experiment import Experiment
from m3djax.plan import collectives, roofline, traffic
from m3djax.plan.compile import Step
from m3djax.plan.hlo import Program
from m3djax.plan.topology import Topology
from m3djax.train import specification

Record = dict[str, Any]


def config_hash(experiment: Experiment, topology: Topology) -> str:
    """Fingerprint of what is planned: it changes with the config and with the topology."""
    text = f"{experiment_lib.dumps(experiment)}\n{topology.name}\n{topology.slices}"
    return hashlib.sha256(text.encode()).hexdigest()


def record(experiment: Experiment, topology: Topology, step: Step) -> Record:
    """Everything a compiled step tells, as JSON; bytes, FLOPs and seconds are of one device."""
    chip, devices = topology.chip, topology.size
    batch = experiment.data.batch_size
    program = Program(step.text) if step.text else None
    found = collectives.find(program, devices, topology.slices) if program else None
    jaxpr = step.traced.jaxpr.jaxpr
    work = {
        "model": flops.model_flops(experiment.task, specification(experiment)) // devices,
        "executed": flops.count_jaxpr(jaxpr) // devices,
        "executed_padded": flops.count_jaxpr(jaxpr, chip.tile) // devices if chip.tile else None,
    }
    floor = step.memory.arguments + step.memory.outputs
    moved = {
        "floor_bytes": floor,
        "estimated_bytes": traffic.estimate(program) if program else None,
    }
    places = [tuple(getattr(device, "coords", ())) for device in step.mesh.devices.flat]
    bounds = roofline.Roofline(
        model=work["model"] / chip.peak,
        compute=work["executed"] / chip.peak,
        compute_padded=work["executed_padded"] / chip.peak if chip.tile else None,
        memory=(moved["estimated_bytes"] or floor) / chip.bandwidth,
        links=None if found is None else roofline.link_seconds(found, topology, places),
        network=None if found is None else roofline.network_seconds(found, chip),
    )
    return {
        "topology": topology.name,
        "slices": topology.slices,
        "devices": devices,
        "device_kind": chip.device_kind,
        "hash": config_hash(experiment, topology),
        "versions": _versions(topology),
        "mesh": dict(step.mesh.shape),
        "batch": {
            "global": batch,
            "per_device": batch / (step.mesh.shape["data"] * step.mesh.shape["fsdp"]),
            "accumulate": experiment.accumulate,
        },
        "parameters": step.parameters,
        "memory": {
            "arguments": step.memory.arguments,
            "outputs_in_place": step.memory.aliased,
            "outputs": step.memory.outputs - step.memory.aliased,
            "temporaries": step.memory.temporaries,
            "program": step.memory.code,
            "peak": step.memory.peak,
            "limit": chip.memory,
            "free_share": round(1 - step.memory.needed / chip.memory, 4),
        },
        "collectives": None if found is None else collectives.totals(found),
        "loops_of_unknown_length": program.unknown_loops if program else [],
        "flops": work,
        "hbm": moved,
        "bounds": _bounds(bounds, padded=False),
        "bounds_with_tile_padding": _bounds(bounds, padded=True) if chip.tile else None,
    }


def _bounds(bounds: roofline.Roofline, *, padded: bool) -> dict[str, Any]:
    seconds, limit = bounds.bound(padded=padded)
    compute = bounds.compute_padded if padded else bounds.compute
    return {
        "compute_ms": _milliseconds(compute),
        "hbm_ms": _milliseconds(bounds.memory),
        "links_ms": _milliseconds(bounds.links),
        "network_ms": _milliseconds(bounds.network),
        "step_ms": _milliseconds(seconds),
        "limited_by": limit,
        "mfu": round(bounds.mfu(padded=padded), 3),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 3)


def _versions(topology: Topology) -> dict[str, str]:
    compiler = "jax-cuda12-plugin" if topology.is_gpu else "libtpu"
    return {name: importlib.metadata.version(name) for name in ("jax", compiler)}


def show(plan: Record) -> None:
    """Prints a record."""
    console = Console()
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    batch = plan["batch"]
    slices = f"{plan['slices']} slices of " if plan["slices"] > 1 else ""
    console.print(
        f"\n{slices}{plan['topology']}: {plan['devices']} x {plan['device_kind']}, mesh {mesh}\n"
        f"batch {batch['global']}, {batch['per_device']:g} per data x fsdp shard; "
        f"{plan['parameters']['trained'] / 1e6:.1f} M parameters trained, "
        f"{plan['parameters']['frozen'] / 1e6:.1f} M frozen"
    )
    console.print(_memory_table(plan["memory"]))
    console.print(_collectives_table(plan["collectives"]))
    console.print(_bounds_table(plan))
    for loop in plan["loops_of_unknown_length"]:
        console.print(f"{loop}: a loop of unknown length, counted once", markup=False)


def _memory_table(memory: Mapping[str, Any]) -> Table:
    grid = _table("memory of one device", "GiB")
    rows = {
        "arguments (state and batch)": "arguments",
        "results beside them": "outputs",
        "temporaries": "temporaries",
        "peak": "peak",
        "program": "program",
        "what a program may use": "limit",
    }
    for label, key in rows.items():
        grid.add_row(label, f"{memory[key] / 2**30:.2f}")
    grid.add_row("free", f"{memory['free_share']:.1%}")
    return grid


def _collectives_table(rows: Mapping[str, Mapping[str, float]] | None) -> Table:
    grid = _table("collectives of one step", "count", "MB of arrays", "MB on the wire per device")
    if rows is None:
        grid.add_row("this version of libtpu cannot print the program", "", "", "")
    for kind, row in (rows or {}).items():
        megabytes = (f"{row[key] / 1e6:,.1f}" for key in ("payload_bytes", "wire_bytes"))
        grid.add_row(kind, f"{row['count']:,}", *megabytes)
    return grid


def _bounds_table(plan: Record) -> Table:
    columns = {"as it is": plan["bounds"], "products padded": plan["bounds_with_tile_padding"]}
    shown = {name: column for name, column in columns.items() if column}
    grid = _table("least time of one step (bounds, not predictions)", *shown)
    work = plan["flops"]
    executed = [work["executed"], work["executed_padded"]][: len(shown)]
    grid.add_row("model TFLOP per device", *[f"{work['model'] / 1e12:.2f}"] * len(shown))
    grid.add_row("executed TFLOP per device", *(f"{value / 1e12:.2f}" for value in executed))
    moved = plan["hbm"]["estimated_bytes"]
    hbm = f"HBM (estimate: {moved / 1e9:.1f} GB)" if moved else "HBM (state and batch only)"
    for label, key in (
        ("compute", "compute_ms"),
        (hbm, "hbm_ms"),
        ("links", "links_ms"),
        ("network between slices", "network_ms"),
        ("step, at least", "step_ms"),
    ):
        values = [column[key] for column in shown.values()]
        if key != "network_ms" or plan["slices"] > 1:
            grid.add_row(label, *("unknown" if v is None else f"{v:.1f} ms" for v in values))
    grid.add_row("limited by", *(column["limited_by"] for column in shown.values()))
    grid.add_row("MFU, at most", *(f"{column['mfu']:.2f}" for column in shown.values()))
    return grid


def _table(title: str, *columns: str) -> Table:
    grid = Table(box=box.SIMPLE_HEAD)
    grid.add_column(title)
    for column in columns:
        grid.add_column(column, justify="right")
    return grid
