"""Prints the facts that `inspect` found as a table in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipelines.errors import printable
from data_pipelines.program import program

_TOWARDS = {
    "L": "Left",
    "R": "Right",
    "P": "Posterior",
    "A": "Anterior",
    "I": "Inferior",
    "S": "Superior",
}
_TOLD = {
    "file": "given by the file",
    "you": "given by you",
    "nobody": "arbitrary: the file does not state its units",
}
_FEW = 12  # at most so many scans or labels are listed
_NOTE = "Not for clinical use."


def print_facts(facts: Mapping[str, Any]) -> None:
    """Prints the facts that `inspect_scan.Inspect` found about one scan."""
    table = Table.grid(padding=(0, 2))
    for name, text in _rows(facts):
        table.add_row(Text(name, "bold"), Text(text))
    Console(highlight=False).print(table)
    # Printed outside the table: a table wraps long commands, and those cannot be copied.
    print(f"\nnext: {facts['next']}\n{_NOTE}")


def print_scans(root: epath.Path, scans: Sequence[epath.Path], command: str) -> None:
    """Prints the first scans of a folder and the command that prepares all of them."""
    print(f"{len(scans)} scans in this folder:")
    for path in scans[:_FEW]:
        print(f"  {printable(path.relative_to(root))}")
    if len(scans) > _FEW:
        print("  ...")
    print(f"\nnext: {command}\n      {program()} inspect ONE_OF_THEM\n{_NOTE}")


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    shape = " x ".join(map(str, facts["shape"]))
    yield "scan", f"{facts['format']}, {shape} voxels (D x H x W), {facts['dtype']}"
    yield "axes", _axes(facts["axes"])
    yield "voxel", _millimetres(facts["spacing_mm"])
    yield "field of view", _millimetres(facts["field_of_view_mm"])
    for index, row in enumerate(facts["affine"] or ()):
        yield "affine" if index == 0 else "", " ".join(f"{value:9.3f}" for value in row)
    hint = "; could be HU: --units HU" if facts["could_be_hu"] else ""
    yield "units", f"{facts['units']}, {_TOLD[facts['units_from']]}{hint}"
    low, high = facts["range"]
    yield "values", f"{low:g} to {high:g}"
    yield "percentiles", "  ".join(f"{at} %: {v:g}" for at, v in facts["percentiles"].items())
    yield "check", _check(facts)
    for index, oddity in enumerate(facts["oddities"] or ["Nothing."]):
        yield "odd" if index == 0 else "", oddity
    if facts["labels"] is not None:
        yield from _labels(facts["labels"])
    yield "picture", facts.get("picture", "none drawn")


def _axes(codes: str | None) -> str:
    if codes is None:
        return "unknown"
    towards = (f"{axis} to {_TOWARDS[code]}" for axis, code in zip("DHW", codes, strict=True))
    return f"{codes}: {', '.join(towards)}"


def _millimetres(sides: Sequence[float] | None) -> str:
    return "unknown" if sides is None else " x ".join(f"{side:g}" for side in sides) + " mm"


def _check(facts: Mapping[str, Any]) -> str:
    if facts["doubt"] is None:
        return "passed: the values agree with the units"
    return f"FAILED: {facts['doubt']['problem']}. Cure: {facts['doubt']['cure']}."


def _labels(labels: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    yield "mask", f"{len(labels)} labels"
    for label in labels[:_FEW]:
        volume = "" if label["ml"] is None else f", {label['ml']:g} ml"
        name = f"{label['label']} {printable(label['name'])}".rstrip()
        yield "", f"{name}: {label['voxels']} voxels{volume}"
    if len(labels) > _FEW:
        yield "", "..."
