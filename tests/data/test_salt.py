"""Salted ids are equal for equal ids, and no name of a file is in the dataset."""

import csv
import stat
from pathlib import Path

import pytest

from data_pipelines.datasets import open_dataset
from data_pipelines.errors import DataError
from tests.data.crops import prepare_crops, truncate


def _everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_names_of_files_stay_out(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in scans.iterdir():
        path.rename(path.with_name(f"Mustermann{path.name}"))
    truncate(scans / "Mustermanns2.nii.gz")
    salt = scans.parent / "private" / "salt.txt"
    assert prepare_crops(scans, salt=str(salt)).run() == 3
    out = scans.parent / "data"
    records = list(open_dataset(out, "train"))
    assert {len(record["patient_id"]) for record in records} == {16}
    assert [record["source"] for record in records] == [record["study_id"] for record in records]
    printed = "".join(capsys.readouterr())
    assert b"Mustermann" not in _everything(out) and "Mustermann" not in printed

    key = scans.parent / "data.key.csv"
    rows = {row["salted_study_id"]: row for row in csv.DictReader(key.open())}
    assert rows[records[0]["study_id"]]["file"] == "Mustermanns0.nii.gz"
    (broken,) = csv.DictReader((out / "quarantine.csv").open())
    assert rows[broken["study_id"]]["file"] == "Mustermanns2.nii.gz"
    for secret in (key, salt):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_one_salt_gives_one_id_and_another_another(scans: Path) -> None:
    ids = []
    for name in ("a", "a", "b"):
        prepare_crops(scans, salt=str(scans.parent / name), overwrite=True).prepare()
        ids.append(
            [record["patient_id"] for record in open_dataset(scans.parent / "data", "train")]
        )
    assert ids[0] == ids[1] and not set(ids[0]) & set(ids[2])


def test_a_short_salt_is_refused(scans: Path) -> None:
    salt = scans.parent / "salt"
    salt.write_text("secret")
    with pytest.raises(DataError, match="too few for a salt. Cure: name a file that does not"):
        prepare_crops(scans, salt=str(salt)).prepare()


def test_a_refused_call_leaves_the_key_of_the_dataset_alone(scans: Path) -> None:
    salt = str(scans.parent / "salt")
    prepare_crops(scans, salt=salt).prepare()
    key = (scans.parent / "data.key.csv").read_text()
    (scans / "s4.nii.gz").unlink()
    with pytest.raises(DataError, match="made from other files"):
        prepare_crops(scans, salt=salt).prepare()
    assert (scans.parent / "data.key.csv").read_text() == key
