"""Imports of a verb before it does any work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from m3djax.config import help_texts

ROOT = Path(__file__).parents[2]
COMPUTES = ("flax", "grain", "jax", "optax", "orbax", "sklearn", "transformers")
WORKS = ("optax", "m3djax.models.attention.splash", "m3djax.runs.checkpoint", "m3djax.training")
READS = ("highdicom", "matplotlib", "nibabel", "pydicom", "scipy", "tensorflow_datasets")


def imported(folder: Path, *arguments: str) -> set[str]:
    """Returns the names of the modules that a process has imported once its verb has ended."""
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from m3djax.cli import main
        try:
            main({list(arguments)})
        finally:
            print("\\n" + repr(sorted(sys.modules)))
    """
    environment = os.environ | {"M3DJAX_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout + done.stderr or "next: " in done.stdout
    return set(json.loads(done.stdout.splitlines()[-1].replace("'", '"')))


@pytest.mark.parametrize("verb", ["inspect", "prepare", "convert", "chat", "ask"])
def test_help_imports_nothing_that_computes_or_reads(verb: str, tmp_path: Path) -> None:
    assert imported(tmp_path, verb, "--help").isdisjoint((*COMPUTES, *READS))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train"], ["plan"], ["evaluate", "--help"], ["compare"]]
)
def test_usage_imports_nothing_at_all(arguments: list[str], tmp_path: Path) -> None:
    assert imported(tmp_path, *arguments).isdisjoint((*COMPUTES, *READS, "numpy", "tyro"))


@pytest.mark.parametrize("verb, config", [("train", "quickstart_ask"), ("plan", "quickstart")])
def test_help_of_a_config_reads_no_data_and_is_kept(verb: str, config: str, tmp_path: Path) -> None:
    call = [verb, f"configs/{config}.py", "--help"]
    first = imported(tmp_path, *call)
    assert "flax" in first
    assert first.isdisjoint((*READS, *WORKS, "grain", "orbax", "sklearn", "transformers"))
    assert imported(tmp_path, *call).isdisjoint((*COMPUTES, *READS, "numpy", "tyro"))


def test_inspecting_a_scan_imports_nothing_that_computes(tmp_path: Path) -> None:
    scan = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))
    nib.save(scan, tmp_path / "scan.nii.gz")
    found = imported(tmp_path, "inspect", "scan.nii.gz", "--units", "HU")
    assert "nibabel" in found and (tmp_path / "inspect.png").exists()
    assert found.isdisjoint((*COMPUTES, "highdicom", "tensorflow_datasets"))


def test_help_is_made_anew_once_a_file_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("M3DJAX_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "config.py"
    made = []

    def print_help() -> None:
        made.append(config.read_text())
        print(made[-1])
        sys.exit(0)

    def shown() -> str:
        help_texts.show(["train", "--help"], config, print_help)
        return capsys.readouterr().out

    config.write_text("one")
    assert shown() == shown() == "one\n"
    assert made == ["one"]
    config.write_text("three")
    assert shown() == "three\n"
    os.utime(config)  # a file of the same size may say something else
    assert shown() == "three\n"
    assert made == ["one", "three", "three"]


def test_a_wrong_flag_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3DJAX_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "config.py"
    config.write_text("")
    with pytest.raises(SystemExit):
        help_texts.show(["train", "--help", "--wrong"], config, lambda: sys.exit(2))
    assert not (tmp_path / "cache").exists()
