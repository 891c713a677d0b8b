"""No name, date, UID or free text of a file appears in any output of any command."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import subprocess
import sys
import traceback
import zlib

import pydicom
import pytest

from data_pipelines import readers
from data_pipelines.datasets import open_dataset
from data_pipelines.errors import DataError
from data_pipelines.prepare import QUARANTINED, Prepare
from data_pipelines.readers.dicom_header import quiet
from tests.data import planted, planted_dicom
from tests.data.planted import NAME, SECRETS, found

ROOT = pathlib.Path(__file__).parents[2]
DATASETS = ("data", "raw", "broken", "masked")

# All logs and warnings are on: privacy must not depend on settings.
CALLS = """
import json, logging, pathlib, traceback
from m3djax.cli import main

def run(arguments):
    try:
        return main(arguments)
    except Exception:
        traceback.print_exc()

if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG)
    calls = json.loads(pathlib.Path("calls.json").read_text())
    statuses = [run(arguments) for arguments in calls]
    pathlib.Path("statuses.json").write_text(json.dumps(statuses))
"""
CONFIG = """
from m3djax.evaluate import Reconstruction
from tests import tiny

def get_config():
    evaluators = {"reconstruction": Reconstruction(draws=1)}
    return tiny.experiment("data", steps=2, save_every=2, evaluators=evaluators)
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Good scans, broken ones, and masks; names of files are not private."""
    root = tmp_path_factory.mktemp("scans")
    for name in ("good", "broken", "masks"):
        (root / name).mkdir()
    with pydicom.config.disable_value_validation(), quiet():
        planted.write_good(root / "good")
        planted.write_broken(root / "broken")
        planted_dicom.write_good(root / "good")
        planted_dicom.write_broken(root / "broken", root / "good/series")
        planted_dicom.write_masks(root / "masks")
    with (root / "table.csv").open("w") as file:
        images = ("good/series", "seg"), ("good/series/00", "contours"), ("good/one.nii.gz", "gone")
        rows = [(image, f"masks/{mask}", mask, "train") for image, mask in images]
        csv.writer(file).writerows([("image", "mask", "patient_id", "split"), *rows])
    return root


def calls(scans: pathlib.Path) -> list[list[str]]:
    """What users do with scans, as arguments of run.py."""
    good, broken = str(scans / "good"), str(scans / "broken")
    hounsfield = ["--units", "HU", "--workers", "0"]
    masks = ["--table", str(scans / "table.csv"), "--structures", "liver", "--check-leaks"]
    prepare = [
        [good, *hounsfield, "--out", "data", "--test-fraction", "0.3"],
        [good, "--recipe", "as_is", "--workers", "1", "--out", "raw"],
        [broken, *hounsfield, "--out", "broken"],
        [str(scans), *hounsfield, *masks, "--salt", "salt", "--out", "masked"],
    ]
    inspect = [[str(path), "--picture", f"{path.name}.png"] for path in (scans / "good").iterdir()]
    inspect += [[str(path), "--picture", "None"] for path in (scans / "broken").iterdir()]
    for mask in (scans / "masks").iterdir():
        own = [f"{good}/series", "--mask", str(mask), "--picture", f"{mask.name}.png"]
        inspect += [own, [*own, "--structures", "liver"], [*own, "--structures", "liver", "--json"]]
    return [
        *(["prepare", "folder", "--source", *options] for options in prepare),
        *(["inspect", *options] for options in inspect),
        ["train", "config.py"],
        ["evaluate", "runs/tiny"],
    ]


@pytest.fixture(scope="module")
def home(scans: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder in which all of it was done, with everything that it wrote and printed."""
    home = tmp_path_factory.mktemp("home")
    (home / "calls.json").write_text(json.dumps(calls(scans)))
    (home / "calls.py").write_text(CALLS)
    (home / "config.py").write_text(CONFIG)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "always"}
    environment["COLUMNS"] = "1000"  # a word that is broken in two would not be found
    with (home / "stdout").open("w") as out, (home / "stderr").open("w") as errors:
        command = [sys.executable, "calls.py"]
        subprocess.run(command, cwd=home, env=environment, stdout=out, stderr=errors, check=True)
    return home


def test_the_patient_is_in_every_file(scans: pathlib.Path) -> None:
    """Otherwise the tests below would prove nothing."""
    for path in filter(pathlib.Path.is_file, scans.rglob("*")):
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = zlib.decompressobj(wbits=31).decompress(data)
        assert found(data) or path.name == "table.csv", path
        assert not found(os.fsencode(path))
    for name in ("good/series/00", "good/enhanced/00", "masks/seg", "masks/contours"):
        assert found((scans / name).read_bytes()) == set(SECRETS)


@pytest.mark.parametrize("code", ["utf-8", "latin-1", "utf-16", "utf-32"])
def test_the_search_finds_every_secret(code: str) -> None:
    for secret in SECRETS:
        assert found(f"\n<{secret.lower()}>".encode(code)) == {secret}


def test_the_search_finds_what_a_record_holds(scans: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A study is named after its file: with the patient's name there, it is in the dataset."""
    (tmp_path / "scans").mkdir()
    named = tmp_path / "scans" / f"{NAME}.nii"
    named.write_bytes((scans / "good/two.nii").read_bytes())
    out = tmp_path / "data"
    Prepare("folder", str(named.parent), out=str(out), units="HU", workers=0).prepare()
    (records,) = out.glob("volumes-*")
    assert found(records.read_bytes()) == {NAME}


def test_nothing_comes_out(home: pathlib.Path) -> None:
    """Neither in datasets, quarantines, cards, pictures, runs and reports, nor on the screen."""
    told = {}
    for path in home.rglob("*"):
        data = os.fsencode(path) + b"\n" + (path.read_bytes() if path.is_file() else b"")
        if found(data):
            told[path.name] = [line[:200] for line in data.splitlines() if found(line)][:9]
    assert not told


def test_nor_does_the_place_of_files(scans: pathlib.Path, home: pathlib.Path) -> None:
    """A dataset and a report hold no absolute path, which often begins with a user's name."""
    shown = [path for name in DATASETS for path in (home / name).rglob("*")]
    for path in (*shown, home / "runs/tiny/report.html"):
        data = path.read_bytes()
        assert not any(os.fsencode(place) in data for place in (scans, home, ROOT, sys.executable))


def test_nor_do_errors_tell(scans: pathlib.Path) -> None:
    """Not even their tracebacks, which users of the library see."""
    told, count = {}, 0
    for path in (scans / "broken").iterdir():
        try:
            readers.read(path)
        except DataError as error:
            count += 1
            trace = "".join(traceback.format_exception(error))
            told[path.name] = found(f"{error}{error!r}{trace}".encode())
    assert count > 70 and not any(told.values()), told


def test_everything_was_done(home: pathlib.Path) -> None:
    """All calls came to the end that they should, good or bad."""
    statuses = json.loads((home / "statuses.json").read_text())
    assert statuses[:4] == [QUARANTINED, 0, QUARANTINED, QUARANTINED]
    assert statuses[-2] == 0 and set(statuses) == {0, 1, QUARANTINED}
    assert statuses.count(0) > 20 and statuses.count(1) > 70
    for name in DATASETS:
        assert len(open_dataset(home / name, "train"))
        assert len((home / name / "quarantine.csv").read_text().splitlines()) > (name != "raw")
    assert any(record["mask"].any() for record in open_dataset(home / "masked", "train"))
    assert (home / "runs/tiny/evaluation/reconstruction/0.png").exists()
    printed = (home / "stderr").read_text()
    assert "DEBUG:" in printed and "Put aside" in printed and "does not hold" in printed
