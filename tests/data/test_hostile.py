"""Odd, damaged and hostile files are read correctly or refused, and each is reported."""

from __future__ import annotations

import csv
import pathlib
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from etils import epath

from data_pipelines.datasets import open_dataset
from data_pipelines.errors import DataError
from data_pipelines.prepare import QUARANTINED, Prepare
from data_pipelines.readers import read_image
from tests.data import (
    hostile_arrays,
    hostile_dicom,
    hostile_dicom_bytes,
    hostile_files,
    hostile_headers,
    hostile_nifti,
)
from tests.data.hostile import CT, MASK, RAN, SECRETS, Kind, examine

KINDS = (
    *hostile_nifti.KINDS,
    *hostile_dicom.KINDS,
    *hostile_dicom_bytes.KINDS,
    *hostile_headers.KINDS,
    *hostile_arrays.KINDS,
    *hostile_files.KINDS,
)
_IN_LITTLE_MEMORY = """
import pathlib, resource, sys, tracemalloc
from tests.data.test_hostile import BOMBS, examine

pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30),) * 2)
for kind in BOMBS:
    print(kind.name, flush=True)
    where = pathlib.Path(sys.argv[1], kind.name)
    where.mkdir()
    tracemalloc.start()
    examine(kind, where, on_made=tracemalloc.reset_peak)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26, f"{kind.name}: {peak:,} bytes"
print("all of them")
"""
BOMBS = [kind for kind in KINDS if kind.bomb]


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """Fails the test after a time limit, for example if opening a pipe hangs."""

    def end(*args: object) -> None:
        pytest.fail("it hangs")  # not an Exception, which other code might catch

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(180)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_there_are_many_kinds() -> None:
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names) >= 200
    assert len(BOMBS) >= 20


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.bomb], ids=lambda kind: kind.name)
def test_is_read_right_or_refused(kind: Kind, tmp_path: pathlib.Path) -> None:
    (where := tmp_path / "scans" / "one").mkdir(parents=True)
    examine(kind, where)


def test_bombs_in_little_memory(tmp_path: pathlib.Path) -> None:
    """All are read in one process, without the claimed memory and without waiting."""
    (scans := tmp_path / "scans").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _IN_LITTLE_MEMORY, str(scans)],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.stdout.endswith("all of them\n"), done.stdout[-100:] + done.stderr[-2000:]


def test_a_file_that_may_not_be_opened(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not stop root, who may run the tests: the opening fails by itself."""

    def deny(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    hostile_nifti.write_scan(tmp_path)
    monkeypatch.setattr(type(epath.Path(tmp_path)), "open", deny)
    with pytest.raises(DataError, match=r"scan\.nii\.gz: cannot be read\. Cure: .*permissions"):
        read_image(tmp_path / "scan.nii.gz")


def _first(path: str) -> str:
    return path.split("/")[0]


def test_nothing_is_lost(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All kinds in one folder, beside two good scans: prepared, put aside, or counted."""
    root, out = tmp_path / "scans", tmp_path / "data"
    for kind in KINDS:
        (root / kind.name).mkdir(parents=True)
        kind.make(root / kind.name)
    for name, data in (("a.nii", hostile_nifti.nifti()), ("b.mha", hostile_headers.metaimage())):
        (root / name).write_bytes(data)
    prepare = Prepare(
        "folder", str(root), out=str(out), units="HU", masks=MASK, test_fraction=0, workers=0
    )
    assert prepare.run() == QUARANTINED

    records = {record["study_id"]: record for record in open_dataset(out, "train")}
    for name in "ab":
        np.testing.assert_array_equal(records.pop(name)["image"], CT.T)
    prepared = {kind.name for kind in KINDS if kind.becomes_a_record()}
    assert {_first(name) for name in records} == prepared
    assert len(records) == len(prepared) + 2  # two names that look the same, and two series

    rows = {_first(row["file"]): row for row in csv.DictReader((out / "quarantine.csv").open())}
    aside = {k.name: k for k in KINDS if not k.becomes_a_record() and k.found}
    assert rows.keys() == aside.keys()
    for name, row in rows.items():
        assert row["cure"] and "library failed" not in row["reason"], row
        outcome = aside[name].outcome
        assert callable(outcome) or re.search(outcome, row["reason"]), row

    page = (out / "card.md").read_text()
    counts: Counter[str] = Counter()
    for kind in KINDS:
        counts.update(kind.passed_over)
    (noted,) = re.findall(r"Ignored files that are not volumes: (.*)\.\n", page)
    assert set(noted.split(", ")) == {f"{count} {ending}" for ending, count in counts.items()}

    said = "".join(capfd.readouterr()) + page + (out / "quarantine.csv").read_text()
    assert not [secret for secret in SECRETS if secret in said]
    assert "\x1b[31m" not in said
    assert not list(root.rglob(RAN))
