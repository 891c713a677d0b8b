"""Files are written atomically; searches end in spite of links and stay inside the folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from etils import epath

from data_pipelines import files
from data_pipelines.errors import DataError


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    assert files.write_whole(target, "é") == epath.Path(target)
    assert target.read_bytes() == "é".encode()
    files.write_whole(target, b"\xff\0")
    assert target.read_bytes() == b"\xff\0"
    assert list(tmp_path.iterdir()) == [target], "nothing half is left"


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.json"
    files.write_whole(target, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(type(epath.Path(target)), "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        files.write_whole(target, "new")
    assert target.read_text() == "old"


def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    target = tmp_path / "key"
    (tmp_path / ".key.partial").write_text("left by a crash, open to all")
    files.write_whole(target, "secret", private=True)
    assert target.stat().st_mode & 0o777 == 0o600 and target.read_text() == "secret"


def test_a_target_is_checked_before_there_is_something_to_lose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.check_target(tmp_path / "new.txt")
    files.check_target("gs://bucket/anywhere/new.txt")
    with pytest.raises(DataError, match="is a folder, and a file is to be written"):
        files.check_target(tmp_path)
    with pytest.raises(DataError, match="its folder is not there"):
        files.check_target(tmp_path / "none" / "new.txt")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(DataError, match="its folder may not be written to"):
        files.check_target(tmp_path / "new.txt")
    assert not list(tmp_path.iterdir())


def test_all_files_below_a_folder_come_in_order_and_once(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a/z/9", "c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/round").symlink_to(tmp_path)
    (tmp_path / "d").symlink_to(tmp_path / "c")
    found = [os.path.relpath(path, tmp_path) for path in files.below(epath.Path(tmp_path))]
    assert found == ["a/z/9", "b/1", "b/2", "c", "d"]
    with pytest.raises(DataError, match="cannot be read. Cure: check the path"):
        list(files.below(epath.Path(tmp_path / "none")))


def test_a_link_that_leads_out_is_found(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "file").touch()
    (inside / "near").symlink_to(inside / "file")
    (inside / "far").symlink_to(outside / "file")
    (tmp_path / "inside2").mkdir()
    root = epath.Path(inside)
    assert [files.leads_out(root / name, root) for name in ("file", "near", "far")] == [
        False,
        False,
        True,
    ]
    assert files.leads_out(epath.Path(tmp_path / "inside2"), root), "a longer name is no subfolder"
    assert not files.leads_out(epath.Path("gs://a/b"), epath.Path("gs://a"))


def test_paths_are_shown_without_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.shown(tmp_path / "runs/a") == "runs/a"
    assert files.shown("gs://bucket/a") == "gs://bucket/a"
    assert files.absolute("runs/../b") == epath.Path(tmp_path / "b")
    assert os.fspath(files.absolute("gs://bucket/a")) == "gs://bucket/a"


def test_a_finished_folder_appears_in_one_step(tmp_path: Path) -> None:
    made = files.working_folder(epath.Path(tmp_path))
    assert made.parent == tmp_path
    (made / "part").write_text("content")
    files.move_folder(made, epath.Path(tmp_path / "data"), last="part")
    assert (tmp_path / "data/part").read_text() == "content" and not made.exists()
    assert files.sizes(epath.Path(tmp_path / "data"), ["part"]) == {"part": 7}


def test_a_remote_folder_gets_its_last_file_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as that file is missing, the folder is not complete."""
    made, target = tmp_path / "made", tmp_path / "bucket/data"
    made.mkdir()
    for name in ("a", "info", "z"):
        (made / name).write_text(name)
    copied = []
    copy = type(epath.Path(made)).copy

    def noted(path: epath.Path, to: epath.Path, overwrite: bool = False) -> epath.Path:
        copied.append(path.name)
        return copy(path, to, overwrite=overwrite)

    monkeypatch.setattr(type(epath.Path(made)), "copy", noted)
    monkeypatch.setattr(files, "is_local", lambda _: False)
    files.move_folder(made, epath.Path(target), last="info")
    assert copied[-1] == "info" and sorted(copied) == ["a", "info", "z"] and not made.exists()
    assert sorted(path.name for path in target.iterdir()) == ["a", "info", "z"]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, ""), True),
        (OSError(errno.EDQUOT, ""), True),
        (OSError(errno.ENOENT, ""), False),
        (ValueError("No space left on device"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, full: bool) -> None:
    assert files.no_space(error) is full
