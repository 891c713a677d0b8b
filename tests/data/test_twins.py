"""Scans with equal bytes, and pairs from an earlier check."""

from __future__ import annotations

from pathlib import Path

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.datasets import twins
from data_pipelines.errors import DataError

NAMES = st.sampled_from("abcdefgh")


@given(st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=8))
def test_groups_are_the_connected_ones(joined: list[list[str]]) -> None:
    """Against a search, and in any order of joining."""
    one, other = twins.Union(), twins.Union()
    for names in joined:
        one.join(names)
    for names in reversed(joined):
        other.join(names[::-1])
    for name in "abcdefgh":
        reached = {name}
        while more := {n for names in joined if reached & set(names) for n in names} - reached:
            reached |= more
        assert one.first(name) == other.first(name) == min(reached)


@pytest.fixture
def scans(tmp_path: Path) -> dict[str, epath.Path]:
    """Arrays of one size, two of them equal, and folders of slices with other names."""
    contents = {"a": b"x" * 99, "b": b"y" * 99, "c": b"x" * 99, "d": b"x" * 98}
    # As far as the middle tells, e is a copy, and it is none.
    contents["e"] = b"z" + b"x" * 98
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    # Eight slices, of which one folder has them named in the other direction.
    for folder, names in {"f": range(8), "g": range(7, -1, -1)}.items():
        (tmp_path / folder).mkdir()
        for number, name in enumerate(names):
            (tmp_path / folder / f"{name}.png").write_bytes(b"slice %d" % number)
        (tmp_path / folder / f"{folder}.txt").write_text(folder)
    return {path.name: epath.Path(path) for path in tmp_path.iterdir()}


def test_equal_bytes_are_copies_whatever_they_are_called(scans: dict[str, epath.Path]) -> None:
    order = sorted(scans)
    groups = twins.copies([scans[name] for name in order])
    assert [tuple(path.name for path in group) for group in groups] == [("a", "c"), ("f", "g")]


def test_only_what_has_the_same_size_is_read(
    scans: dict[str, epath.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    whole = twins._hash
    monkeypatch.setattr(twins, "_hash", lambda path: read.append(path.name) or whole(path))
    twins.copies(scans[name] for name in "abcde")
    assert sorted(read) == ["a", "c", "e"], "b differs in its middle, d in its size"


def test_what_cannot_be_read_is_nobodys_copy(tmp_path: Path) -> None:
    lost = [epath.Path(tmp_path / name) for name in ("one", "two")]
    assert twins.copies(lost) == []


def test_pairs_of_volumes_are_taken_from_a_table(tmp_path: Path) -> None:
    table = tmp_path / "leaks.csv"
    table.write_text("kind,study_id,other_study_id\nvolume,a,b\nreport,a,c\nvolume,c,d\n")
    assert twins.read_pairs(table) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("content", [b"study_id\na\n", b"kind\nvolume\n", b"\xff\xfe\0", None])
def test_other_tables_are_refused(content: bytes | None, tmp_path: Path) -> None:
    table = tmp_path / "leaks.csv"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(DataError, match="not a readable table of leaks. Cure: give the leaks.csv"):
        twins.read_pairs(table)
