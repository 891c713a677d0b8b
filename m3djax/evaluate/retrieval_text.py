"""What the numbers of `Retrieval` say, in sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m3djax.evaluate.findings import Findings, Picture, Table
from m3djax.evaluate.statistics import number_text

_NAMES = {"image_to_text": "volume to report", "text_to_image": "report to volume"}


def present(
    pools: Mapping[str, Any],
    pictures: tuple[Picture, ...],
    caveats: tuple[str, ...],
    decides: str = "",
) -> Findings:
    """The findings.

    Args:
      pools: name -> numbers.
      pictures: sheets of queries.
      caveats: what the numbers do not say.
      decides: the pool that must be found better than chance; "" for no such test.
    """
    last, numbers = list(pools.items())[-1]
    curves = {
        f"{direction}_{key}": value["value"]
        for direction in _NAMES
        for key, value in numbers[direction].items()
    }
    repeated = any(n["captions"] < n["samples"] for n in pools.values())
    told = "Some captions are the same: they count as equally right, in chance too."
    return Findings(
        title="Retrieval between volumes and reports",
        numbers={**curves, "curves_of": last, "pools": dict(pools)},
        sentences=tuple(_sentence(name, n) for name, n in pools.items()),
        tables=tuple(_table(name, n) for name, n in pools.items()),
        pictures=pictures,
        caveats=((told,) if repeated else ()) + caveats,
        passed=_beats_chance(pools[decides]) if decides else None,
    )


def _beats_chance(numbers: Mapping[str, Any]) -> bool:
    """In both directions, at every k, by more than the interval."""
    return all(
        numbers[direction][key]["interval"][0] > expected
        for direction in _NAMES
        for key, expected in numbers["chance"].items()
    )


def _sentence(name: str, numbers: Mapping[str, Any]) -> str:
    key = next(iter(numbers["chance"]))
    expected = numbers["chance"][key]
    parts = []
    for direction, what in _NAMES.items():
        found = numbers[direction][key]
        low, high = found["interval"]
        against = "above" if low > expected else "below" if high < expected else "no better than"
        parts.append(f"{what} {found['value']:.1%}, {against} chance ({expected:.1%})")
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
        f"over {_units(numbers)}, the pool kept as it is.",
    )


def _units(numbers: Mapping[str, Any]) -> str:
    """What the intervals are over."""
    if "regions" not in numbers:
        return f"{numbers['patients']} patients"
    return (
        f"{numbers['regions']} regions of the only patient, whose crops overlap those of their "
        "neighbours: other patients may differ by more"
    )


def _percent(number: Mapping[str, Any]) -> str:
    low, high = number["interval"]
    return f"{number['value']:.1%} [{low:.1%}, {high:.1%}]"
