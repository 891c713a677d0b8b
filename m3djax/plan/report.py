"""Tables of a plan for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from m3djax.plan.record import PlanRecord


def show(plan: PlanRecord) -> None:
    """Prints a record as tables."""
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
    console.print(_collectives_table(plan["collectives"], plan["step"]))
    console.print(_bounds_table(plan))
    if once := plan["hbm"]["once_bytes"]:
        console.print(f"before and after the loop: {once / 1e9:.1f} GB of HBM traffic, once")
    for loop in plan["loops_of_unknown_length"]:
        console.print(f"{loop}: a loop of unknown length, counted once", markup=False)


def _memory_table(memory: Mapping[str, Any]) -> Table:
    grid = _table("memory of one device", "GiB")
    rows = {
        "arguments (state and batch)": "arguments",
        "results (not in place)": "outputs",
        "temporaries": "temporaries",
        "peak": "peak",
        "program": "program",
        "what a program may use": "limit",
    }
    for label, key in rows.items():
        grid.add_row(label, f"{memory[key] / 2**30:.2f}")
    grid.add_row("free", f"{memory['free_share']:.1%}")
    return grid


def _collectives_table(rows: Mapping[str, Mapping[str, float]] | None, step: str) -> Table:
    grid = _table(
        f"collectives of one {step}", "count", "MB of arrays", "MB on the wire per device"
    )
    if rows is None:
        grid.add_row("this version of libtpu cannot print the program", "", "", "")
    for kind, row in (rows or {}).items():
        megabytes = (f"{row[key] / 1e6:,.1f}" for key in ("payload_bytes", "wire_bytes"))
        grid.add_row(kind, f"{row['count']:,}", *megabytes)
    return grid


def _bounds_table(plan: PlanRecord) -> Table:
    step = plan["step"]
    columns = {"as it is": plan["bounds"], "products padded": plan["bounds_with_tile_padding"]}
    shown = {name: column for name, column in columns.items() if column}
    grid = _table(f"least time of one {step} (bounds, not predictions)", *shown)
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
        (f"{step}, at least", "step_ms"),
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
