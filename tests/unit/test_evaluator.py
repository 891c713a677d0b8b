"""The base class of evaluators: the data that it reads, and its findings by default."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from data_pipelines.crops import Crop
from data_pipelines.errors import ConfigError
from data_pipelines.pipeline import Data, Source
from m3djax.contracts.evaluator import Batch, Evaluator, Pass, Predictions, Subject
from m3djax.contracts.findings import EvaluationError
from m3djax.contracts.scores import Column, Scores
from m3djax.contracts.units import Units

DATA = Data(
    (Source("mine", "test", 2.0, (0.0, 0.5)), Source("theirs")), (4, 8, 8), 3, "unit", (Crop(2.0),)
)
SUBJECT: Any = None  # the parts that are tested look at no model


@dataclasses.dataclass(frozen=True)
class Whole(Evaluator):
    """Has every method, and does nothing."""

    def check(self, data: Data) -> None:
        del data

    @property
    def rows(self) -> int:
        return 1

    def passes(self, subject: Subject) -> Iterable[Pass]:
        return ()

    def predict(self, subject: Subject, batch: Batch) -> Mapping[str, Any]:
        return {}

    def score(self, subject: Subject, predictions: Mapping[str, Predictions]) -> Scores:
        return Scores(())


@pytest.mark.parametrize("dataset, path", [("", "mine"), ("other", "other")])
@pytest.mark.parametrize("size, wanted", [((0, 0, 0), (4, 8, 8)), ((1, 2, 3), (1, 2, 3))])
def test_an_evaluator_changes_dataset_and_size_alone(
    dataset: str, path: str, size: tuple[int, int, int], wanted: tuple[int, int, int]
) -> None:
    read = Whole(dataset, size).reading(DATA)
    [source] = read.sources
    assert read.size == wanted and source == dataclasses.replace(DATA.sources[0], path=path)
    assert dataclasses.replace(read, sources=DATA.sources, size=DATA.size) == DATA


def test_a_size_with_some_zeros_is_no_size() -> None:
    with pytest.raises(ConfigError, match="batch_size and size must be positive"):
        Whole(size=(0, 2, 2)).reading(DATA)


@pytest.mark.parametrize("name", ["check", "rows", "passes", "predict", "score"])
def test_an_evaluator_without_a_method_cannot_be_made(name: str) -> None:
    part = type("Part", (Whole,), {name: getattr(Evaluator, name)})
    with pytest.raises(TypeError, match=f"abstract.*{name}"):
        part()


def scores(*units: str) -> Scores:
    kind = Units.of(list(units), "patients")
    values = [float(number) for number in range(len(units))]
    weights = [1.0] * len(units)
    return Scores((Column.of("ct", "dice", kind, list(range(len(units))), values, weights),))


def test_findings_are_the_means_by_default() -> None:
    found = Whole().present(SUBJECT, {}, scores("a", "b", "c", "c"))
    assert found.title == "Whole" and found.numbers["ct_dice"] == pytest.approx(1.5)
    [table] = found.tables
    assert table.columns == ("samples", "method", "metric", "mean")
    assert [row[0] for row in table.rows] == ["ct"] and "over 3 patients" in table.note
    assert found.passed is None


def test_one_unit_has_no_interval() -> None:
    with pytest.raises(EvaluationError, match="Whole, ct: 1 independent units.*Cure: put more"):
        Whole().present(SUBJECT, {}, scores("a", "a"))
