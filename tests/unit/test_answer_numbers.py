"""Numbers from answers: types, chance, one answer for all, and numbers without interval."""

from __future__ import annotations

import numpy as np
import pytest

from m3djax.contracts.findings import EvaluationError
from m3djax.evaluate.answers import metrics
from m3djax.evaluate.answers.numbers import TYPES_MEAN, Kind
from m3djax.evaluate.answers.present import present
from m3djax.evaluate.answers.table import Row

CHOICES = {"A": "Axial", "B": "Coronal", "C": "Venous", "D": "Arterial"}


def row(number: int, type_: str, truth: str, said: str, kind: str = "choice") -> Row:
    choices = CHOICES if kind == "choice" else {}
    return Row(number, 0, 0, (0, 0, 0), kind, type_, f"Question {number}?", choices, truth, said)


ROWS = [
    row(0, "plane", "A. Axial", "A. Axial"),
    row(1, "plane", "A. Axial", "axial"),
    row(2, "plane", "A. Axial", "B. Coronal"),
    row(3, "phase", "C. Venous", "I do not know"),
    row(3, "organ", "B. Coronal", "(b)"),
]


def kind(rows: list[Row], unit: list[int]) -> Kind:
    name = rows[0].kind
    return Kind(name, {"model": rows}, np.array(unit), {"model": metrics.score(name, rows)})


def test_types_and_chance() -> None:
    numbers = kind(ROWS, [0, 1, 2, 3, 3]).numbers(seed=0)
    model = numbers["models"]["model"]
    assert model["all"]["accuracy"]["value"] == pytest.approx(3 / 5)
    assert model["all"]["accuracy_m3d"]["value"] == pytest.approx(1 / 5)
    assert model["all"]["unparsed"]["value"] == pytest.approx(1 / 5)
    assert model["plane"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert model[TYPES_MEAN]["accuracy"]["value"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert numbers["questions_by_type"] == {"organ": 1, "phase": 1, "plane": 3}
    assert set(numbers["guesses"]) == {"chance", "one answer for all"}
    assert numbers["guesses"]["chance"]["all"] == 0.25
    assert numbers["guesses"]["one answer for all"] == pytest.approx(
        {"all": 3 / 5, "plane": 1, "phase": 1, "organ": 1}
    )
    low, high = model["all"]["accuracy"]["interval"]
    assert low < 3 / 5 < high
    assert model["phase"]["accuracy"]["interval"] is None  # of one unit


def test_intervals_are_over_units() -> None:
    """The interval is wider for ten questions about one patient than about ten patients."""
    rows = [row(n, "plane", "A. Axial", "A." if n < 10 else "B.") for n in range(20)]
    few = kind(rows, [n // 10 for n in range(20)]).numbers(0)
    many = kind(rows, list(range(20))).numbers(0)
    widths = [
        np.ptp(numbers["models"]["model"]["all"]["accuracy"]["interval"]) for numbers in (few, many)
    ]
    assert widths[0] == 1 and widths[1] < 0.6


def test_yes_and_no_are_balanced() -> None:
    rows = [row(n, "x", "No." if n % 4 else "Yes.", "No", "yes_no") for n in range(16)]
    model = kind(rows, list(range(16))).numbers(0)["models"]["model"]["all"]
    assert model["accuracy"]["value"] == 0.75
    assert model["balanced"]["value"] == 0.5


def test_a_mask_is_to_be_announced_where_there_is_one() -> None:
    pairs = [("It is [SEG].", "[SEG]."), ("[SEG].", "None."), ("None.", "[SEG]."), ("No.", "None.")]
    rows = [row(n, "liver", truth, said, "seg") for n, (said, truth) in enumerate(pairs)]
    assert metrics.score("seg", rows)["accuracy"].tolist() == [1, 0, 0, 1]
    findings = present({"seg": kind(rows, [0, 1, 2, 3]).numbers(0)}, "patients", (), ())
    assert [line[0] for line in findings.tables[0].rows] == ["accuracy"]


def test_free_text_has_all_metrics() -> None:
    said = ["the liver is large", "", "no fluid"]
    meant = ["the liver is large", "no nodule", "a fluid level"]
    rows = [row(n, "", m, s, "open") for n, (s, m) in enumerate(zip(said, meant, strict=True))]
    scores = metrics.score("open", rows)
    first = {metric: values[0] for metric, values in scores.items()}
    assert first["rougeL"] == first["exact"] == 1 and first["bleu4"] == pytest.approx(1)
    assert all(values[1] == 0 for values in scores.values())
    assert {"meteor", "cider", "bleu1", "coco_bleu4"} <= set(scores)
    findings = present({"open": kind(rows, [0, 1, 2]).numbers(0)}, "patients", (), ())
    (table,) = findings.tables
    assert table.columns == ("", "model")
    assert [line[0] for line in table.rows][-1] == "CIDEr"
    assert any("METEOR" in caveat for caveat in findings.caveats)


def test_many_types_are_shortened() -> None:
    rows = [row(n, f"type {n % 20:02}", "A. Axial", "A.") for n in range(50)]
    findings = present({"choice": kind(rows, list(range(50))).numbers(0)}, "patients", (), ())
    by_type = findings.tables[1]
    assert len(by_type.rows) == 13 and "12 most frequent of 20" in by_type.note
    assert by_type.columns == ("type", "model", "chance")


def test_right_answers_that_are_none() -> None:
    with pytest.raises(EvaluationError, match="not start with the letter of a"):
        metrics.score("choice", [row(0, "x", "Axial", "A.")])
    with pytest.raises(EvaluationError, match="neither yes nor no"):
        metrics.score("yes_no", [row(0, "x", "perhaps", "perhaps", "yes_no")])
