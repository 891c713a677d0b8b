"""Sentences and tables of the evaluator `Retrieval`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m3djax.contracts.findings import Findings, Picture, Table
from m3djax.contracts.statistics import against, number_text

_ONE_PATIENT = (
    "{}: all samples are of one patient. The intervals are over regions of the scan, whose crops "
    "overlap those of their neighbours, and say nothing about other patients."
)
_NAMES = {"image_to_text": "volume to text", "text_to_image": "text to volume"}


def present(
    pools: Mapping[str, Any],
    pictures: tuple[Picture, ...],
    caveats: tuple[str, ...],
    pass_at: int = 0,
) -> Findings:
    """Returns the findings.

    Args:
      pools: name of a pool -> its numbers.
      pictures: pictures of queries.
      caveats: sentences about the limits of the numbers.
      pass_at: see `Retrieval`.
    """
    first, numbers = next(iter(pools.items()))
    curves = {
        f"{direction}_{key}": value["value"]
        for direction in _NAMES
        for key, value in numbers[direction].items()
    }
    notes = []
    if any(n["captions"] < n["samples"] for n in pools.values()):
        notes.append("Equal captions count as equally right, also in the values of chance.")
    if alone := [name for name, n in pools.items() if n["patients"] == 1]:
        notes.append(_ONE_PATIENT.format(", ".join(alone)))
    return Findings(
        title="Retrieval between volumes and texts",
        numbers={**curves, "curves_of": first, "pools": dict(pools)},
        sentences=tuple(_sentence(name, n) for name, n in pools.items()),
        tables=tuple(_table(name, n) for name, n in pools.items()),
        pictures=pictures,
        caveats=(*notes, *caveats),
        passed=_passes(numbers, pass_at) if pass_at else None,
    )


def _passes(numbers: Mapping[str, Any], k: int) -> bool:
    """Returns whether both directions exceed chance by more than their intervals."""
    key = f"R@{k}"  # absent if the pool is not larger than k: then the test fails
    return key in numbers["chance"] and all(
        numbers[direction][key]["interval"][0] > numbers["chance"][key] for direction in _NAMES
    )


def _sentence(name: str, numbers: Mapping[str, Any]) -> str:
    key = next(iter(numbers["chance"]))
    expected = numbers["chance"][key]
    parts = []
    for direction, what in _NAMES.items():
        found = numbers[direction][key]
        place = against(found["interval"], expected)
        parts.append(f"{what} {found['value']:.1%}, {place} chance ({expected:.1%})")
    return f"Pool {name} ({numbers['samples']:,} samples), {key}: {'; '.join(parts)}."


def _table(name: str, numbers: Mapping[str, Any]) -> Table:
    keys = list(numbers["chance"])
    rows = [
        (
            what,
            *(_percent(numbers[direction][key]) for key in keys),
            number_text(numbers[direction]["median_rank"], ".1f"),
        )
        for direction, what in _NAMES.items()
    ]
    rows.append(("a random order", *(f"{numbers['chance'][k]:.1%}" for k in keys), ""))
    return Table(
        f"Pool {name}: {numbers['samples']:,} samples, {numbers['captions']:,} different captions",
        ("query to answer", *keys, "median rank"),
        tuple(rows),
        "R@k: share of queries with a right answer among the first k. In brackets: 95 % bootstrap "
        f"over {_units(numbers)}, with a fixed pool.",
    )


def _units(numbers: Mapping[str, Any]) -> str:
    if numbers["patients"] > 1:
        return f"{numbers['patients']:,} patients"
    return f"{numbers['regions']:,} regions of one patient"


def _percent(number: Mapping[str, Any]) -> str:
    low, high = number["interval"]
    return f"{number['value']:.1%} [{low:.1%}, {high:.1%}]"
