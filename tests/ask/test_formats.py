"""Formats other than NIfTI, slices without units, and a run with separate adapters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread
from PIL import Image

from m3djax import params as params_lib
from m3djax.adapters import A, LoRA
from m3djax.cli import main
from m3djax.config import serialize
from m3djax.inputs.inputs import Inputs, ScaleIntensityRange
from m3djax.runs import weights
from m3djax.runs.model import Model
from tests.ask.conftest import AFFINE
from tests.data import dicom_files

ASKED = ("Is it there?", "--sampling.max-new-tokens", "10")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # One device: collectives of simulated ones wait for each other on few cores.
    monkeypatch.setattr("jax.local_devices", lambda *_, **__: jax.devices()[:1])
    return tmp_path


@pytest.fixture(scope="module")
def array(scan: Path) -> np.ndarray:
    return np.asarray(nib.load(scan).dataobj)


def lps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions of the scan's axes (columns), their spacing, and its origin, in LPS."""
    turned = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    return turned[:3, :3] / spacing, spacing, turned[:3, 3]


def as_nrrd(array: np.ndarray, folder: Path) -> Path:
    directions, spacing, origin = lps()
    image = sitk.GetImageFromArray(array.T)
    image.SetDirection(directions.ravel().tolist())
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    sitk.WriteImage(image, str(folder / "patient.nrrd"), True)
    return folder / "patient.nrrd"


def as_dicom(array: np.ndarray, folder: Path) -> Path:
    """A slice for each index of the last axis."""
    directions, spacing, origin = lps()
    columns, rows, slices = array.shape
    corners = origin + np.outer(np.arange(slices), directions[:, 2] * spacing[2])
    return dicom_files.write(
        folder / "series",
        [
            dicom_files.ct_slice(
                number,
                directions[:, :2].T.ravel().round(6).tolist(),
                ImagePositionPatient=corners[number].round(6).tolist(),
                PixelSpacing=[spacing[1], spacing[0]],
                Rows=rows,
                Columns=columns,
                PixelData=(array[..., number].T + 1024).astype(np.uint16).tobytes(),
            )
            for number in range(slices)
        ],
    )


def as_slices(array: np.ndarray, folder: Path) -> Path:
    """Writes grey values of a window, as in M3D-Cap."""
    (folder / "slices").mkdir()
    grey = np.clip((array + 200.0) / 600 * 255, 0, 255).astype(np.uint8)
    for number in range(grey.shape[2]):
        Image.fromarray(grey[..., number].T).save(folder / f"slices/{number}.png")
    return folder / "slices"


def ask(capsys: pytest.CaptureFixture[str], run: Path, path: Path, *more: str) -> str:
    assert main(["ask", str(run), str(path), *ASKED, *more]) == 0
    return capsys.readouterr().out


def answer(out: str) -> str:
    return out.split("> Is it there?\n")[1].split("picture: ")[0]


@pytest.mark.parametrize("write", [as_nrrd, as_dicom])
def test_the_same_scan_gets_the_same_answer(
    write: Callable[[np.ndarray, Path], Path],
    array: np.ndarray,
    run: Path,
    scan: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """For any order of axes in the file, also for a place in millimetres."""
    units = () if write is as_dicom else ("--units", "HU")
    wanted = ask(capsys, run, scan, "--units", "HU")
    found = ask(capsys, run, write(array, home), *units)
    assert answer(found) == answer(wanted) and "HU" in found

    def millimetres(out: str) -> str:
        return out.split("RAS+ mm ")[1].splitlines()[0]

    assert millimetres(found) == millimetres(wanted)
    assert imread(home / "ask.png").shape[1] > 500


def test_slices_without_units(
    array: np.ndarray,
    run: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run trained on HU refuses them with a reason; a run trained on grey values reads them."""
    slices = as_slices(array, home)
    for units in ((), ("--units", "HU")):
        assert main(["ask", str(run), str(slices), *ASKED, *units]) == 1
        error = capsys.readouterr().err
        assert "slices" in error and "HU" in error and "Cure: " in error
    config = serialize.from_json(json.loads((run / "config.json").read_text()))
    inputs = Inputs(ScaleIntensityRange(0, 1))
    data = dataclasses.replace(config.data, units="unit")
    (home / "grey").mkdir()
    (home / "grey/weights").symlink_to(run / "weights")
    made = dataclasses.replace(config, inputs=inputs, data=data)
    (home / "grey/config.json").write_text(serialize.dumps(made))
    out = ask(capsys, home / "grey", slices, "--recipe", "m3d_slices", "--at", "whole")
    assert "24 x 30 x 36 voxels" in out and "mm" not in out.split("looked at")[1].split("\n")[0]
    assert imread(home / "ask.png").std() > 0.05


def test_a_run_with_adapters_is_asked_merged(
    run: Path, scan: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = serialize.from_json(json.loads((run / "config.json").read_text()))
    lora = LoRA(rank=2)
    base = Model.open(run).params
    adapted = params_lib.flatten(lora.init(jax.random.key(0), base))
    rng = np.random.default_rng(0)
    for path, leaf in adapted.items():
        if path.endswith("lora_b"):
            adapted[path] = rng.normal(size=leaf.shape).astype(np.float32)
    assert any(path.endswith(A) for path in adapted)
    apart = dataclasses.replace(config, adapters=lora, trainable=".*lora_[ab]")
    weights.save(home / "apart", apart, adapted, {})
    merged = params_lib.flatten(lora.merged(params_lib.unflatten(adapted)))
    weights.save(home / "merged", config, merged, {})
    said = [
        answer(ask(capsys, folder, scan, "--units", "HU"))
        for folder in (home / "apart", home / "merged", run)
    ]
    assert said[0] == said[1] != said[2]
