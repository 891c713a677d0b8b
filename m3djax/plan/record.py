"""The record of a plan as JSON: memory, collectives, FLOPs and bounds of a compiled step."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from typing import Any

from m3djax.config import serialize
from m3djax.plan import collectives, roofline, traffic
from m3djax.plan.compile import Step
from m3djax.plan.hlo import Program
from m3djax.plan.targets import Target
from m3djax.plan.topology import Topology
from m3djax.training import flops

PlanRecord = dict[str, Any]


def config_hash(target: Target, topology: Topology) -> str:
    """Returns the fingerprint of a plan; it changes with the program and with the topology."""
    planned = {**target.fields(), "topology": [topology.name, topology.slices]}
    return hashlib.sha256(json.dumps(serialize.to_json(planned)).encode()).hexdigest()


def record(target: Target, topology: Topology, step: Step) -> PlanRecord:
    """Returns the record of a compiled step; bytes, FLOPs and seconds are those of one device."""
    chip, devices = topology.chip, topology.size
    whole = Program(step.text) if step.text else None
    program = whole.turn() if whole and target.looped else whole
    found = collectives.find(program, devices, topology.slices) if program else None
    jaxpr = step.traced.jaxpr.jaxpr
    model = target.work(step.traced) // devices
    executed = flops.count_jaxpr(jaxpr) // devices
    padded = flops.count_jaxpr(jaxpr, chip.tile) // devices if chip.tile else None
    # A loop iteration writes little of the state that it reads; a train step writes all of it.
    floor = step.memory.arguments + (0 if target.looped else step.memory.outputs)
    moved = traffic.estimate(program) if program else None
    once = traffic.estimate(whole) - moved if whole and moved and target.looped else 0
    places = [tuple(getattr(device, "coords", ())) for device in step.mesh.devices.flat]
    bounds = roofline.Roofline(
        model=model / chip.peak,
        compute=executed / chip.peak,
        compute_padded=None if padded is None else padded / chip.peak,
        memory=(moved or floor) / chip.bandwidth,
        links=None if found is None else roofline.link_seconds(found, topology, places),
        network=None if found is None else roofline.network_seconds(found, chip),
    )
    return {
        "step": target.kind,
        "topology": topology.name,
        "slices": topology.slices,
        "devices": devices,
        "device_kind": chip.device_kind,
        "hash": config_hash(target, topology),
        "versions": _versions(topology),
        "mesh": dict(step.mesh.shape),
        "batch": {
            "global": target.rows,
            "per_device": target.rows / (step.mesh.shape["data"] * step.mesh.shape["fsdp"]),
            "accumulate": target.gradient_accumulation_steps,
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
        "flops": {"model": model, "executed": executed, "executed_padded": padded},
        "hbm": {"floor_bytes": floor, "estimated_bytes": moved, "once_bytes": once},
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
