"""Fields of NRRD and MetaImage headers: values, errors, and no quoted values in errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.readers.text_header import Fields, data_file, to_ras

PATIENT = "Doe^John"


def fields(**values: str) -> Fields:
    return Fields("scan.mhd", values.items())


def test_the_first_field_that_is_there_counts() -> None:
    given = fields(Origin="1 2 3", Offset="4 5 6")
    assert given.get("Position", "Offset", "Origin") == "4 5 6"
    assert given.get("Position") is None and given.numbers(3, "Position") is None


def test_equal_repeats_are_one_value_and_others_none() -> None:
    twice = Fields("scan.mhd", [("A", "1"), ("A", "1"), ("Comment", "x"), ("Comment", "y")])
    assert twice.need("A") == "1"
    with pytest.raises(DataError, match="two values in the field 'Comment'"):
        twice.get("Comment")


@pytest.mark.parametrize("text", ["1 -2.5 3e1", "(1,-2.5,30)", " ( 1 , -2.5 , 30 ) "])
def test_numbers_may_have_brackets(text: str) -> None:
    found = fields(Spacing=text).numbers(3, "Spacing")
    assert found is not None and found.dtype == np.float64
    assert found.tolist() == [1, -2.5, 30]


@pytest.mark.parametrize("text", ["1 2", "1 2 3 4", f"1 2 {PATIENT}", "", "1 2 1e9", "nan 1 inf"])
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(DataError) as caught:
        fields(Spacing=text).numbers(3, "Spacing")
    assert PATIENT not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize("text", ["4 5", "4 5 6 7", "4 5 -6", "4 5 6.0", f"4 5 {10**18}0", "٤ 5 6"])
def test_sizes_are_three_whole_numbers(text: str) -> None:
    assert fields(DimSize="4 5 6").sizes("DimSize") == [4, 5, 6]
    with pytest.raises(DataError, match="does not hold three lengths. Cure: save one 3D image"):
        fields(DimSize=text).sizes("DimSize")


def test_a_start_is_a_whole_number_or_minus_one() -> None:
    assert [fields(HeaderSize=text).whole("HeaderSize") for text in ("12", "-1")] == [12, -1]
    assert fields().whole("HeaderSize") == 0
    for text in ("-2", "1.5", PATIENT):
        with pytest.raises(DataError, match="'HeaderSize' is not a whole number") as caught:
            fields(HeaderSize=text).whole("HeaderSize")
        assert PATIENT not in str(caught.value)


def test_a_field_that_is_needed_is_named() -> None:
    with pytest.raises(DataError, match="scan.mhd: no field 'ElementType' in the header"):
        fields().need("ElementType")


def test_directions_of_a_file_become_ras() -> None:
    """Steps along x, y, z in LPS are those of an array (z, y, x) in RAS."""
    directions, origin = np.diag([0.5, 0.6, 2.0]), np.array([10.0, 20, 30])
    affine = to_ras(directions, origin, (-1, -1, 1))
    np.testing.assert_allclose(affine @ [0, 0, 0, 1], [-10, -20, 30, 1])
    np.testing.assert_allclose(affine @ [1, 0, 0, 1], [-10, -20, 32, 1])
    np.testing.assert_allclose(affine @ [0, 0, 1, 1], [-10.5, -20, 30, 1])


@pytest.fixture
def header(tmp_path: Path) -> Fields:
    (tmp_path / "in/data").mkdir(parents=True)
    for name in ("in/a.raw", "in/data/b.raw", "secret.raw"):
        (tmp_path / name).write_bytes(b"voxels")
    (tmp_path / "in/link.raw").symlink_to(tmp_path / "secret.raw")
    return Fields(tmp_path / "in/scan.mhd", [])


def test_voxels_lie_beside_their_header_or_below(header: Fields) -> None:
    found = [data_file(header, name).read_bytes() for name in ("a.raw", "data/b.raw")]
    assert found == [b"voxels"] * 2
    assert data_file(header, r"data\b.raw").name == "b.raw", "as Windows writes it"


@pytest.mark.parametrize(
    "name", ["../secret.raw", "data/../../secret.raw", "/etc/passwd", "link.raw", "a\0.raw"]
)
def test_no_header_opens_a_file_elsewhere(header: Fields, name: str) -> None:
    with pytest.raises(DataError, match="its data file lies outside of its folder"):
        data_file(header, name)


def test_other_data_files_are_refused_without_their_name(header: Fields) -> None:
    for name in ("LIST 2", "slice%03d.raw 1 9 1"):
        with pytest.raises(DataError, match="the voxels are spread over several files"):
            data_file(header, name)
    with pytest.raises(DataError, match="its data file: .* Cure: put it where") as caught:
        data_file(header, f"{PATIENT}.raw")
    assert PATIENT not in str(caught.value)
