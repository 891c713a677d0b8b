"""Sentences and tables of the evaluator `OrganProbe`."""

from __future__ import annotations

from typing import Any

from m3djax.contracts.findings import Findings, Table
from m3djax.contracts.statistics import number_text, verdict

_NAMES = {
    "pretrained": "pretrained encoder",
    "untrained": "untrained encoders",
    "raw": "raw voxels",
}


def present(numbers: dict[str, Any], caveats: tuple[str, ...]) -> Findings:
    """Returns the findings; a probe has no test to pass."""
    accuracies = {f"accuracy_{name}": n["value"] for name, n in numbers["accuracy"].items()}
    return Findings(
        title="Organ probe on frozen features",
        numbers={**accuracies, **numbers},
        sentences=(_sentence(numbers),),
        tables=(_overall(numbers), _per_organ(numbers)),
        caveats=caveats,
    )


def _sentence(numbers: dict[str, Any]) -> str:
    accuracy = numbers["accuracy"]
    others = ", ".join(
        f"{verdict(gain['interval'])} {_NAMES[name]} ({accuracy[name]['value']:.2f})"
        for name, gain in numbers["gain_over"].items()
    )
    return (
        f"A linear probe on the frozen features of single patches tells {len(numbers['organs'])} "
        f"organs apart with balanced accuracy {accuracy['pretrained']['value']:.2f}: {others}; "
        f"guessing gives {numbers['chance']:.2f}."
    )


def _overall(numbers: dict[str, Any]) -> Table:
    gains = numbers["gain_over"]
    rows = tuple(
        (
            _NAMES[name],
            number_text(accuracy, ".3f"),
            number_text(gains[name], "+.3f") if name in gains else "",
        )
        for name, accuracy in numbers["accuracy"].items()
    )
    return Table(
        "All organs count alike",
        ("features", "balanced accuracy", "pretrained is better by"),
        (*rows, ("guessing", f"{numbers['chance']:.3f}", "")),
        f"In brackets: 95 % bootstrap over the {numbers['blocks']} crop-sized blocks of the "
        "held-out side that hold such patches, paired in the last column. Untrained: their mean.",
    )


def _per_organ(numbers: dict[str, Any]) -> Table:
    return Table(
        "Recall of each organ",
        ("organ", "patches fitted", "patches asked", *(_NAMES[n] for n in numbers["accuracy"])),
        tuple(
            (
                organ,
                f"{counts['fitted']:,}",
                f"{counts['asked']:,}",
                *(f"{recall:.2f}" for recall in counts["recall"].values()),
            )
            for organ, counts in numbers["organs"].items()
        ),
        "Crops overlap, so a place counts once for every crop that shows it.",
    )
