"""Sentences and tables of the evaluator `Reconstruction`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m3djax.contracts.findings import Findings, Picture, Table
from m3djax.contracts.statistics import number_text, verdict

_NAMES = {
    "model": "model",
    "mean": "mean of the crop's visible voxels",
    "fill_in": "smooth fill-in",
}
_ONE_SCAN = (
    "The intervals (95 %, bootstrap over crops) show how much the result depends on the part of "
    "the scan. They say nothing about other patients."
)
_NORM_PIX = (
    "The model predicts normalised patches, so its predictions get the mean and deviation of the "
    "true hidden patches. The baselines do not. The comparison favours the model."
)


def present(
    groups: Mapping[str, Any],
    pictures: tuple[Picture, ...],
    units: str,
    kind: str,
    *,
    norm_pix: bool,
) -> Findings:
    """Returns the findings; the first group decides whether the test is passed.

    Args:
      groups: name of a group of studies -> its numbers.
      pictures: pictures of some studies.
      units: units of the voxels.
      kind: independent units of the intervals, "crops" or "studies".
      norm_pix: whether the model predicts normalised patches.
    """
    first, decides = next(iter(groups.items()))
    caveats = ((_ONE_SCAN,) if kind == "crops" else ()) + ((_NORM_PIX,) if norm_pix else ())
    return Findings(
        title="Reconstruction of hidden patches",
        numbers={
            **{f"mse_{method}": mse["value"] for method, mse in decides["mse"].items()},
            "decides": first,
            "groups": groups,
        },
        sentences=tuple(_sentence(name, numbers, units) for name, numbers in groups.items()),
        tables=tuple(_table(name, numbers, units, kind) for name, numbers in groups.items()),
        pictures=pictures,
        caveats=caveats,
        passed=decides["beats_mean"],
    )


def caption(record: dict[str, Any]) -> str:
    """Returns the caption of a study's picture."""
    mm = " x ".join(f"{side:g}" for side in record["spacing"].tolist())
    return (
        f"Study {record['study_id']}, voxels of {mm} mm, the first of the random masks. A crop is "
        "all that the model sees of the scan at a time, hence the seams between crops."
    )


def _sentence(name: str, numbers: Mapping[str, Any], units: str) -> str:
    rmse, gains = numbers["rmse"], numbers["gain_over"]
    others = ", ".join(
        f"{verdict(gains[method]['interval'])} the {_NAMES[method]} ({_error(rmse[method])})"
        for method in gains
    )
    return (
        f"On hidden patches of held-out {name} the model is off by {_error(rmse['model'])} {units} "
        f"(root mean square): {others}."
    )


def _table(name: str, numbers: Mapping[str, Any], units: str, kind: str) -> Table:
    def row(method: str) -> tuple[str, ...]:
        gain = numbers["gain_over"].get(method)
        return (
            _NAMES[method],
            number_text(numbers["mse"][method], ".4f"),
            _error(numbers["rmse"][method]),
            number_text(gain, "+.4f") if gain else "",
        )

    return Table(
        name[0].upper() + name[1:],
        ("filled in by", "mean squared error", f"RMSE, {units}", "error above the model's"),
        tuple(row(method) for method in numbers["mse"]),
        f"{numbers['hidden_voxels']:,} hidden voxels, squared errors in network units. In "
        f"brackets: 95 % bootstrap over {numbers['units']} {kind}, paired in the last column.",
    )


def _error(value: float) -> str:
    """Formats an error: HU without decimals, values in 0..1 with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
