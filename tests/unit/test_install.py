"""What `pip install .` installs, built here without an installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from m3djax.config import files

ROOT = Path(__file__).parents[2]
PACKAGES = ("m3djax", "data_pipelines", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    return zipfile.ZipFile(*folder.glob("*.whl"))


def test_the_wheel_holds_every_file_and_no_package_named_configs(wheel: zipfile.ZipFile) -> None:
    files = [
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    wanted = [f"m3djax/shipped/{file}" if file.startswith("configs/") else file for file in files]
    held = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert sorted(held) == sorted(wanted)


def test_the_wheel_has_the_command_and_the_requirements(wheel: zipfile.ZipFile) -> None:
    info = {Path(n).name: n for n in wheel.namelist() if ".dist-info/" in n}
    assert "m3djax = m3djax.cli:main" in wheel.read(info["entry_points.txt"]).decode()
    metadata = wheel.read(info["METADATA"]).decode()
    assert "Requires-Dist: jax<0.11" in metadata and "Requires-Dist: tyro" in metadata


def test_shipped_configs_load_from_the_wheel_in_another_folder(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    wheel.extractall(site)
    work = tmp_path / "work"
    work.mkdir()
    code = """if True:
        from m3djax.config import files
        from data_pipelines.program import program
        print(program())
        print(*files.names())
        print(files.load_config("own_scans").name)  # imports another config
        print(files.find("configs/own_scans.py"))
    """
    environment = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    program, names, loaded, file = done.stdout.splitlines()
    assert program == "m3djax" and names.split() == files.names()
    assert loaded == "own_scans"
    assert Path(file) == site / "m3djax/shipped/configs/own_scans.py"
