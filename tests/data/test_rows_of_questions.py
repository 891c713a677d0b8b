"""Questions in records, texts that count as missing, intensities, and messages of errors."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.caption import Question
from data_pipelines.datasets import qa
from data_pipelines.datasets.qa import QuestionRow, with_choices
from data_pipelines.errors import DataError, TextError, UserError, printable
from data_pipelines.intensity import (
    ClipIntensity,
    RequireUnits,
    ScaleIntensity,
    ScaleIntensityRange,
    percentiles,
)
from data_pipelines.text.reports import clean_report, is_missing, says_nothing
from data_pipelines.volume import Volume

LEAVE_OUT = "leave the report empty in the table, or leave the study out"
words = st.text(max_size=12)
rows = st.builds(
    QuestionRow,
    words,
    words,
    st.lists(words, max_size=4).map(tuple),
    st.sampled_from(["", "organ"]),
    st.booleans(),
    st.lists(words, max_size=2).map(tuple),
)


@given(st.lists(rows, max_size=4))
def test_rows_come_back_from_a_record(some: list[QuestionRow]) -> None:
    back = qa.from_text(qa.to_text(some))
    assert back == some
    assert [row.splits for row in back] == [row.splits for row in some]  # `==` ignores them
    assert bool(qa.to_text(some)) == bool(some)


def test_rows_differ_by_more_than_their_splits() -> None:
    row = QuestionRow("Where?", "Here", splits=("train",))
    assert row == QuestionRow("Where?", "Here", splits=("test",))
    assert row != QuestionRow("Where?", "Here", topic="organ", splits=("train",))


def test_a_row_with_choices_is_asked_with_and_without_them() -> None:
    row = QuestionRow("Which phase?", "venous", ("arterial", "venous", "none", "late"), "phase")
    asked = "Which phase? Choices: A. arterial B. venous C. none D. late"
    closed, free = row.questions()
    meaning = "Which phase? venous"
    assert closed == Question("B. venous", meaning, asked, "closed", "phase", row.choices)
    assert free == Question("venous", meaning, "Which phase?", "open", "phase")
    assert closed.lettered == {"A": "arterial", "B": "venous", "C": "none", "D": "late"}
    assert [closed.form, free.form, Question("", "").form] == ["choice", "open", "report"]


def test_yes_or_no_is_asked_once() -> None:
    (found,) = QuestionRow("Fluid?", "No", ("Yes", "No"), "organ", yes_no=True).questions()
    assert found == Question("No", "Fluid? No", "Fluid?", "yes_no", "organ")


@pytest.mark.parametrize("choice", ["NA", "", " nan ", "<NA>", "n/a"])
def test_a_choice_must_be_there(choice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"a choice is missing: ['one', {choice!r}]")):
        with_choices("Which?", ["one", choice])


@pytest.mark.parametrize(
    "text, missing, nothing",
    [
        ("", True, True),
        (" NA ", True, True),
        ("NaN", True, True),
        ("None", False, True),  # an answer, but no report
        ("not given.", False, True),
        ("...", False, True),
        ("0", False, False),
        ("Normal.", False, False),
        ("肺", False, False),
    ],
)
def test_cells_without_a_value_and_reports_without_words(
    text: str, missing: bool, nothing: bool
) -> None:
    assert is_missing(text) == missing
    assert says_nothing(text) == nothing


@pytest.mark.parametrize(
    "text, problem, cure",
    [
        (b"ab\xff", "is not UTF-8 (byte 2)", "save the file as UTF-8"),
        ("a\ud800", "was not UTF-8 when it was read", "save the file as UTF-8"),
        (None, "is None instead of a text", LEAVE_OUT),
        (float("nan"), "is nan instead of a text", LEAVE_OUT),
        (" n/a. ", "has no words", LEAVE_OUT),
    ],
)
def test_reports_that_cannot_be_used(text: object, problem: str, cure: str) -> None:
    with pytest.raises(TextError) as caught:
        clean_report(text, "table.csv, line 3")
    assert str(caught.value) == f"table.csv, line 3: {problem}. Cure: {cure}."


def test_marks_and_null_characters_are_cleaned() -> None:
    assert clean_report("\ufeffNo\x00 fluid.".encode()) == "No  fluid."
    assert clean_report("None", empty=is_missing) == "None"


def test_an_error_survives_a_process_and_is_safe_to_print() -> None:
    error = DataError("a\nb.nii", "is cut", "copy it again")
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, UserError)
    assert (back.path, back.problem, back.cure) == ("a\nb.nii", "is cut", "copy it again")
    assert str(back) == "a\\nb.nii: is cut. Cure: copy it again."
    assert str(DataError("", "is flat", "stack it")) == "array: is flat. Cure: stack it."


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_any_name_can_be_printed(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    shown.encode()
    assert shown == name or not name.isprintable()


def scan(array: np.ndarray, units: str = "HU") -> Volume:
    """Returns a volume of one row."""
    return Volume(array.reshape(1, 1, -1), units, source="a.nii")  # type: ignore[arg-type]


def test_other_units_are_refused_with_their_cure() -> None:
    volume = scan(np.arange(3), "raw")
    assert RequireUnits("raw")(volume) is volume
    expected = (
        "a.nii: the recipe needs voxels in HU, these are 'raw'. Cure: say --units HU (in Python: "
        "units='HU') if the files have these units, or use a recipe for any units, such as 'm3d'."
    )
    with pytest.raises(DataError, match=re.escape(expected)):
        RequireUnits()(volume)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "float32"])
def test_limits_beyond_a_dtype_do_not_wrap(dtype: str) -> None:
    array = np.array([0, 1, 100, 127], dtype)
    found = ClipIntensity(-1024, 3071)(scan(array))
    np.testing.assert_array_equal(found.array.ravel(), array)
    assert (found.array.dtype, found.units) == (dtype, "HU")
    np.testing.assert_array_equal(
        ClipIntensity(1, 100)(scan(array)).array.ravel(), [1, 1, 100, 100]
    )


def test_a_constant_becomes_zero() -> None:
    found = ScaleIntensity()(scan(np.full(4, 900, np.int16)))
    np.testing.assert_array_equal(found.array, np.zeros((1, 1, 4)))
    assert (found.array.dtype, found.units) == ("float32", "unit")


@pytest.mark.parametrize(
    "step, expected, units",
    [
        (ScaleIntensityRange(-100, 300), [0, 0.25, 1], "unit"),
        (ScaleIntensityRange(-100, 300, clip=False), [-0.25, 0.25, 1.25], "raw"),
        (ScaleIntensityRange(-100, 300, -1, 1), [-1, -0.5, 1], "raw"),
    ],
)
def test_ranges_by_hand(step: ScaleIntensityRange, expected: list[float], units: str) -> None:
    found = step(scan(np.array([-200, 0, 400], np.int16)))
    np.testing.assert_allclose(found.array.ravel(), expected, atol=1e-6)
    assert found.units == units


@given(st.lists(st.integers(-1024, 3071), min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(some: list[int], at: float) -> None:
    expected = np.percentile(np.array(some, np.float64), [at, 50])
    np.testing.assert_allclose(percentiles(np.array(some, np.int16), at, 50), expected, atol=1e-9)
