"""Two runs side by side: paired bootstrap over the scores of the same samples."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
from etils import epath

from m3djax.cli import main
from m3djax.contracts.findings import EvaluationError
from m3djax.contracts.scores import Column, Scores, present_means
from m3djax.contracts.units import Units
from m3djax.evaluate.compare import compare, compare_scores
from m3djax.runs.results import FOLDER

PATIENTS = 30
ORDER = np.argsort([f"S{number}" for number in range(2 * PATIENTS)])


def scores(shift: float = 0.0, patients: int = PATIENTS, **changes: Any) -> Scores:
    """Two samples of each patient, who differ much; a run is better by `shift` everywhere."""
    names = [f"P{number // 2}" for number in range(2 * patients)]
    sample = [f"S{number}" for number in range(2 * patients)]
    value = np.random.default_rng(0).normal(size=patients).repeat(2)
    noise = 0.01 * np.random.default_rng(int(1000 * shift)).normal(size=2 * patients)
    column = Column.of("test", "dice", Units.of(names, "patients"), sample, value + shift + noise)
    baseline = dataclasses.replace(column, method="mean", value=np.zeros(2 * patients))
    return Scores((dataclasses.replace(column, **changes), baseline))


def run(folder: pathlib.Path, name: str, table: Scores, evaluator: str = "organs") -> epath.Path:
    """A run that was evaluated."""
    place = epath.Path(folder) / name / FOLDER / evaluator
    place.mkdir(parents=True)
    table.write(place)
    return epath.Path(folder) / name


def test_two_runs_are_compared_in_pairs(tmp_path: pathlib.Path) -> None:
    """Patients differ a hundred times as much as the runs do, and the difference is clear."""
    runs = run(tmp_path, "first", scores()), run(tmp_path, "second", scores(0.05))
    (difference,) = compare(*runs, "organs")
    assert (difference.group, difference.metric, difference.units) == ("test", "dice", PATIENTS)
    assert difference.value == pytest.approx(0.05, abs=0.01)
    low, high = difference.interval
    assert 0.04 < low < difference.value < high < 0.06
    assert difference.means[1] - difference.means[0] == pytest.approx(difference.value)
    alone = present_means("organs", scores()).numbers["means"]["test"]["this run"]["dice"]
    assert alone["interval"][1] - alone["interval"][0] > 10 * (high - low)
    assert alone["value"] == pytest.approx(difference.means[0])


def test_samples_without_a_score_in_one_run_are_no_pairs(tmp_path: pathlib.Path) -> None:
    """As a metric of answers that only some answers have."""
    number = np.arange(2 * PATIENTS)
    first = scores(value=np.where(number % 2, np.nan, number // 2))
    second = scores(value=np.where(number < 20, np.nan, number // 2 + 1.0))
    runs = run(tmp_path, "first", first), run(tmp_path, "second", second)
    (difference,) = compare(*runs, "organs")
    assert (difference.units, difference.value) == (PATIENTS - 10, 1.0)
    assert difference.means == (19.5, 20.5) and difference.interval == (1.0, 1.0)
    alone = scores(value=np.where(number < 2, 1.0, np.nan))
    assert compare_scores(alone, scores()) == []


def test_the_table_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    value = np.where(np.arange(2 * PATIENTS) == 3, np.nan, 0.1)
    place = run(tmp_path, "first", scores(value=value)) / FOLDER / "organs"
    column = Scores.read(place).column("test", "dice")
    np.testing.assert_array_equal(column.value[np.argsort(column.sample)], value[ORDER])
    assert (column.weight == 1).all()
    (place / "scores.jsonl").write_text('{"unit": "P1"')
    with pytest.raises(EvaluationError, match="is damaged.*Cure"):
        Scores.read(place)
    with pytest.raises(EvaluationError, match="there are no scores. Cure: python run.py evaluate"):
        compare(tmp_path / "nothing", tmp_path / "first", "organs")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            scores(patients=PATIENTS + 1),
            r"units do not match \(30 and 31\): 'P30' is in the second",
        ),
        (scores(metric="iou"), "groups and metrics do not match .*Cure: measure both runs"),
        (
            scores(sample=np.array([f"T{number}" for number in range(2 * PATIENTS)])),
            "samples do not match .*'S0 of P0' is in the first run alone",
        ),
        (scores(weight=np.full(2 * PATIENTS, 2.0)), "weigh their samples differently"),
    ],
)
def test_runs_that_were_not_measured_alike_are_refused(other: Scores, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        compare_scores(scores(), other)


def test_the_verb_prints_a_table_for_each_common_evaluator(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    first, second = run(tmp_path, "first", scores()), run(tmp_path, "second", scores(0.05))
    run(tmp_path, "second", scores(), "probe")
    assert main(["compare", str(first), str(second)]) == 0
    printed = capsys.readouterr().out
    (difference,) = compare(first, second, "organs")
    low, high = difference.interval
    assert printed.split()[0] == "organs"
    row = next(line.split() for line in printed.splitlines() if "dice" in line)
    means = [f"{mean:.4g}" for mean in difference.means]
    interval = [f"[{low:+.4g},", f"{high:+.4g}]"]
    assert row == ["test", "dice", "30", *means, f"{difference.value:+.4g}", *interval]
    assert f"scores of {second} alone: probe" in printed.replace("\n", "")


def test_the_verb_refuses_runs_without_a_common_evaluator(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = run(tmp_path, "first", scores()), run(tmp_path, "second", scores(), "probe")
    assert main(["compare", str(first), str(second)]) == 1
    assert f"{first} has scores of organs, and {second} of probe. Cure: " in capsys.readouterr().err
    assert main(["compare", str(first), str(tmp_path)]) == 1
    error = f"{tmp_path}/evaluation: there are no scores. Cure: python run.py evaluate {tmp_path}."
    assert error in capsys.readouterr().err
    assert main(["compare", str(first)]) == 2
    assert "usage: python run.py compare RUN_A RUN_B" in capsys.readouterr().err
