"""A user's package outside the tree: the README's task, encoder and evaluator, and other tasks."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import load_file

from m3djax.cli import main
from m3djax.config import registry, serialize
from m3djax.convert.run import Convert
from m3djax.generate.sampling import Sampling
from m3djax.runs import run_folder, weights
from m3djax.runs.model import Model, read_params

ROOT = Path(__file__).parents[2]
OWN = '''
from m3djax.tasks import MAE, VisionLanguage


class OwnMAE(MAE):
    """A masked autoencoder by another name."""


class OwnModel(VisionLanguage):
    """A model that answers, by another name."""
'''


def blocks() -> dict[str, str]:
    """The files that the README writes: first line -> code."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    named = (re.match(r"# (\S+\.py)\n", block) for block in code)
    return {found[1]: block for found, block in zip(named, code, strict=True) if found}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, prepared: str) -> Iterator[Path]:
    """A working directory with the package `mine`, and with what an earlier version saved."""
    folder = tmp_path_factory.mktemp("own")
    with tarfile.open(ROOT / "tests/saved/v1.tar.xz") as file:
        file.extractall(folder, filter="data")
    for name, code in blocks().items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code.replace("data/sample_ct", prepared))
    (folder / "mine/own.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        yield folder


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that no package was named to."""
    monkeypatch.setattr(registry, "_allowed", {"flax"})


@pytest.fixture(scope="module")
def run(home: Path) -> str:
    """The README's task, trained with a flag of its own encoder; with its evaluator."""
    flags = ["--task.vision.widths", "4", "8", "--steps", "2"]
    assert main(["train", "shares_config.py", *flags]) == 0
    return "runs/shares"


def snippet(start: str) -> str:
    """The README's code that begins with this comment or import."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return next(block for block in code if start in block)


def test_features_of_a_scan(home: Path, sample_scans: Path) -> None:
    scan = Path(sample_scans) / "example_ct_sm.nii.gz"
    code = snippet("model.encode").replace("runs/quickstart", "runs/mae")
    names: dict[str, Any] = {}
    exec(code.replace("scan.nii.gz", str(scan)), names)
    assert names["features"].tokens.shape == (1, 4 * 8 * 8, 16)


def test_a_mask_is_put_back(home: Path, sample_scans: Path) -> None:
    scan = Path(sample_scans) / "example_ct_sm.nii.gz"
    exec(snippet("save_like").replace("scan.nii.gz", str(scan)), {})
    bones, image = nib.load(home / "bones.nii.gz"), nib.load(scan)
    assert bones.shape == image.shape
    inside = np.asarray(image.dataobj)[np.asarray(bones.dataobj) > 0]
    assert inside.size and np.mean(inside > 200) > 0.8


def test_a_session_in_python(home: Path) -> None:
    code = snippet("open_scan").replace("runs/quickstart_ask", "runs/vision_language")
    code = code.replace('units="HU")', 'units="HU", sampling=Sampling(8))')
    names: dict[str, Any] = {"Sampling": Sampling}
    exec(code, names)
    assert names["first"].text is not None and names["second"].tokens


def test_the_readme_is_short() -> None:
    task = blocks()["mine/shares.py"]
    assert len(task.splitlines()) < 80


def test_a_task_and_its_encoder_are_trained(run: str) -> None:
    config = json.loads(Path(run, "config.json").read_text())
    assert config["task"]["class"] == "mine.shares:Shares"
    assert config["task"]["vision"] == {
        "class": "mine.shares:Convolutions", "dtype": "float32", "widths": [4, 8]
    }  # fmt: skip
    kernel = Model.open(run).params["vision"]["conv_1"]["kernel"]
    assert kernel.shape == (2, 2, 2, 4, 8)


def test_another_process_must_be_told_the_package(
    run: str, stranger: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", run]) == 1
    said = capsys.readouterr().err
    assert "is of the package 'mine', whose code would run. Cure: --allow mine" in said
    assert main(["evaluate", run, "--allow", "mine"]) == 0
    rows = Path(run, "evaluation/shares/scores.jsonl").read_text().splitlines()
    assert len(rows) > 2 and 0 <= json.loads(rows[-1])["value"] <= 1


def own(source: str, name: str, cls: str) -> str:
    """A saved run whose task is a class of the package."""
    registry.allow("mine")
    experiment = run_folder.read_experiment(source)
    task = experiment.task
    fields = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}  # type: ignore
    mine = getattr(importlib.import_module("mine.own"), cls)(**fields)
    parameters = read_params(source, experiment)
    weights.save(name, dataclasses.replace(experiment, task=mine), parameters, {})
    saved = serialize.from_json(json.loads(Path(name, "config.json").read_text()))
    assert type(saved.task) is type(mine)
    return name


def test_an_own_task_is_exported(run: str, home: Path) -> None:
    folder = own("runs/mae", "mine_mae", "OwnMAE")
    for source, out in ((folder, "own.safetensors"), ("runs/mae", "theirs.safetensors")):
        Convert(source, str(home / out), layout="m3d_vit").export()
    found, expected = load_file(home / "own.safetensors"), load_file(home / "theirs.safetensors")
    assert found.keys() == expected.keys() and len(found) > 10


def test_an_own_model_is_asked(
    run: str, home: Path, stranger: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own("runs/vision_language", "mine_answers", "OwnModel")
    arguments = ["scan.nii.gz", "Where is the aorta?", "--units", "HU", "--picture", "None"]
    arguments += ["--sampling.max-new-tokens", "4"]
    registry._allowed.discard("mine")
    assert main(["ask", folder, *arguments]) == 1
    assert "--allow mine" in capsys.readouterr().err
    assert main(["ask", folder, *arguments, "--allow", "mine"]) == 0
    assert "> Where is the aorta?" in capsys.readouterr().out
