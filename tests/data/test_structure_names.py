"""Structures are found by typed names; a name that occurs twice is an error."""

from __future__ import annotations

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.readers import structure_names
from data_pipelines.readers.structure_names import held, key, places
from data_pipelines.volume import NOT_LABELLED

FILE = epath.Path("rtstruct.dcm")
NAMES = ("Liver", "Left  Kidney ", "GTV", "gtv", "Straße")


@given(st.text(st.sampled_from("aB ß\t"), min_size=1))
def test_spaces_and_capitals_do_not_count(name: str) -> None:
    assert key(f"  {name.replace(' ', '   ')} ") == key(name) == key(key(name))
    assert key(name.upper()) == key(name)


def test_wanted_names_are_told_as_the_user_wrote_them() -> None:
    assert held(NAMES, ("left kidney", "SPLEEN", "liver")) == ("left kidney", "liver")
    assert held((), ("liver",)) == ()


def test_places_follow_what_is_wanted_and_not_the_file() -> None:
    assert places(FILE, NAMES, ["STRASSE", "left kidney", "liver"]) == [4, 1, 0]


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ((), "it holds 5 structures, and no name was given"),
        (("spleen",), "no structures are called 'spleen' among its 5"),
        (("Gtv",), "2 structures are called 'Gtv' among its 5"),
        (("liver", "heart"), "no structures are called 'heart'"),
    ],
)
def test_names_that_cannot_be_read(wanted: tuple[str, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        places(FILE, NAMES, wanted)
    # What the file calls its structures is free text: only the user's own words are shown.
    assert not any(name in str(caught.value) for name in NAMES if name not in wanted)


def test_there_are_no_more_structures_than_values() -> None:
    structure_names.check_count(FILE, ["x"] * (NOT_LABELLED - 1))
    problem = f"{NOT_LABELLED} structures for {NOT_LABELLED - 1} label values"
    with pytest.raises(DataError, match=problem):
        structure_names.check_count(FILE, ["x"] * NOT_LABELLED)
    many = [f"n{number}" for number in range(NOT_LABELLED)]
    with pytest.raises(DataError, match=problem):
        places(FILE, many, many)
