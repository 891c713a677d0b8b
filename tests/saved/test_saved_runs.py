"""Runs, weights and datasets of earlier versions are read, resumed, evaluated and exported."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from m3djax import cli
from m3djax.config import serialize
from m3djax.convert.run import Convert
from m3djax.evaluate.run import evaluate
from m3djax.mesh import sharding
from m3djax.runs import run_folder
from m3djax.runs.checkpoint import Checkpointer
from m3djax.runs.state import abstract_state
from m3djax.training.train import train

HERE = Path(__file__).parent
EXPECTED: dict[str, Any] = json.loads((HERE / "v1.json").read_text())
CONFIGS: dict[str, Any] = json.loads((HERE / "v1_configs.json").read_text())
TOLERANCE = 1e-4
# Fields of batches that had another name then.
RENAMED = {"valid": "attention_mask", "text_mask": "attention_mask"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    with tarfile.open(HERE / "v1.tar.xz") as file:
        file.extractall(folder, filter="data")
    return folder


@pytest.fixture
def home(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(unpacked)
    return unpacked


@pytest.mark.parametrize("name", sorted(EXPECTED["batches"]))
def test_batches_are_the_same(home: Path, name: str) -> None:
    experiment = run_folder.read_experiment(f"runs/{name}")
    for start, hashes in zip((0, 4), EXPECTED["batches"][name], strict=True):
        batches = experiment.data.batches(experiment.seed, start)
        batch = next(batches)
        batches.close()
        hashes = {RENAMED.get(field, field): value for field, value in hashes.items()}
        found = {field: hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
                 for field, value in batch.items()}  # fmt: skip
        assert found == hashes


def test_a_masked_autoencoder_is_measured(home: Path) -> None:
    numbers("mae")


def test_two_towers_are_measured(home: Path) -> None:
    numbers("clip")


def test_answers_are_measured(home: Path) -> None:
    numbers("vision_language")
    for file, rows in EXPECTED["said"].items():
        path = home / "runs/vision_language/evaluation/answers" / file
        said = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["said"] for row in said] == [row["said"] for row in rows]
        assert [row["truth"] for row in said] == [row["truth"] for row in rows]


def numbers(name: str) -> None:
    """Evaluates a run and compares every number with what the earlier version found."""
    results = evaluate(f"runs/{name}", Console(quiet=True))
    found = json.loads(Path(f"runs/{name}/evaluation/results.json").read_text())
    expected = EXPECTED["results"][name]
    assert results.step == expected["step"] == 3
    for evaluator, values in expected["found"].items():
        same(found["found"][evaluator], values, f"{name}: {evaluator}")


def same(found: Any, expected: Any, where: str) -> None:
    """Every value of `expected` is in `found`, which may hold more."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in found, f"{where}: {key} is gone"
            same(found[key], value, f"{where}: {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for one, other in zip(found, expected, strict=True):
            same(one, other, where)
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, TOLERANCE, 1e-6, err_msg=where)
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", sorted(EXPECTED["ask"]))
def test_a_scan_is_asked_about(
    home: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jax.local_devices", lambda *_, **__: jax.devices()[:1])
    questions = {
        "two": ["Is the liver there?", "Give the bounding box of the spleen."],
        "whole": ["Where is the aorta?", "--at", "whole"],
        "at": ["What is this?", "--at=10,12,13", "--zoom", "1.5"],
    }
    options = ["--units", "HU", "--sampling.max-new-tokens", "8", "--picture", "None"]
    arguments = [*questions[name], *options, "--report", "draft.md"]
    assert cli.main(["ask", "runs/vision_language", "scan.nii.gz", *arguments]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "measured" not in line]
    expected = "\n".join(EXPECTED["ask"][name]).splitlines()
    assert said == [line for line in expected if "measured" not in line]


@pytest.mark.parametrize("case", sorted(EXPECTED["export"]))
def test_parameters_are_exported(home: Path, case: str, tmp_path: Path) -> None:
    source, layout = case.split()
    # "weights bert": what was imported into `weights/bert`, in the layout of its name.
    folder = f"weights/{layout}" if source == "weights" else f"runs/{source}"
    out = tmp_path / "out.safetensors"
    Convert(folder, str(out), layout=layout).export()  # type: ignore[arg-type]
    found = {
        name: f"{hashlib.sha256(tensor.tobytes()).hexdigest()[:16]} {tensor.shape}"
        for name, tensor in load_file(out).items()
    }
    expected = EXPECTED["export"][case]
    if case.startswith("vision_language m3d_lamed") and not layout.endswith("lora"):
        # Merged adapters: a product, which CPUs round in their own ways.
        found, expected = ({n: v.split(" ", 1)[1] for n, v in x.items()} for x in (found, expected))
    assert found == expected


PLANNED = [case for case in sorted(EXPECTED["plan"]) if " " in case]


@pytest.fixture(scope="module")
def plans(unpacked: Path) -> dict[str, Any]:
    """The plans that today's code makes of the saved runs."""
    out = unpacked / "plans.json"
    command = [sys.executable, "-m", "tests.saved.plans", str(out), *PLANNED]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    subprocess.run(command, cwd=unpacked, env=environment, check=True)
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", PLANNED)
def test_plans_are_the_same(plans: dict[str, Any], case: str) -> None:
    """Memory and collective bytes of the step for a TPU slice stay within 0.5 %."""
    found, expected = plans[case], EXPECTED["plan"][case]
    assert found["parameters"] == expected["parameters"]
    for key in ("arguments", "temporaries", "outputs_in_place", "peak"):
        assert found["memory"][key] == pytest.approx(expected["memory"][key], rel=0.005)
    assert found["collectives"].keys() == expected["collectives"].keys()
    for kind, row in expected["collectives"].items():
        wire = found["collectives"][kind]["wire_bytes"]
        assert wire == pytest.approx(row["wire_bytes"], rel=0.005)


@pytest.mark.parametrize("path", sorted(CONFIGS))
def test_saved_configs_are_read(path: str) -> None:
    """A config that an earlier version saved is the config that is shipped today."""
    saved, shipped = serialize.from_json(CONFIGS[path]), cli.load_config(f"configs/{path}.py")
    assert serialize.to_json(saved) == serialize.to_json(shipped)


@pytest.mark.parametrize("name", ["mae", "clip", "language", "vision_language"])
def test_training_goes_on(home: Path, name: str) -> None:
    """Last, as it changes the runs: the three steps that are left give what they gave before."""
    experiment = run_folder.read_experiment(f"runs/{name}")
    folder = train(experiment)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row, expected in zip(rows, EXPECTED["metrics"][name], strict=True):
        same(row, expected, f"{name}, step {row['step']}")
    mesh = sharding.make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        checkpointer = Checkpointer(folder)
        state = checkpointer.restore(abstract_state(experiment, mesh))
        checkpointer.close()
    assert state is not None
    leaves = state.trainable | state.frozen
    for path, (total, squares) in EXPECTED["final"][name].items():
        leaf = np.asarray(leaves[path], np.float64)
        np.testing.assert_allclose(leaf.sum(), total, 1e-3, 1e-3, err_msg=path)
        np.testing.assert_allclose(np.square(leaf).sum(), squares, 1e-3, 1e-4, err_msg=path)
