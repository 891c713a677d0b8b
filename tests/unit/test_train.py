"""The training loop: exact resuming, stop at NaN, frozen parameters, `init_from`."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from data_pipelines.errors import ConfigError, DataError
from m3djax import params
from m3djax.contracts.findings import EvaluationError
from m3djax.evaluate.split import SplitEvaluator
from m3djax.experiment import Experiment
from m3djax.inputs.augment import Augment
from m3djax.inputs.inputs import Inputs
from m3djax.optim import AdamW, Group
from m3djax.runs import checkpoint, run_folder
from m3djax.runs.checkpoint import CheckpointError, load_params
from m3djax.runs.metrics import MetricsWriter, read_metrics
from m3djax.runs.run_folder import RunError
from m3djax.runs.state import abstract_state, specification
from m3djax.tasks import MAE
from m3djax.training.train import Interrupted, NonFiniteError, train
from tests import tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def whole(prepared: str, home: Path) -> Path:
    """A run of six steps without a break."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        train(tiny.experiment(prepared, name="whole"))
    return home / "runs/whole"


@pytest.fixture(autouse=True)
def in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def weights(run: Path | epath.Path, experiment: Experiment) -> dict[str, np.ndarray]:
    shapes = jax.eval_shape(experiment.task.init, jax.random.key(0), specification(experiment))
    return {k: np.asarray(v) for k, v in load_params(run, params.flatten(shapes)).items()}


def test_a_run_explains_itself(whole: Path, prepared: str) -> None:
    assert run_folder.read_experiment(whole) == tiny.experiment(prepared, name="whole")
    assert json.loads((whole / "environment.json").read_text())["jax"] == jax.__version__
    assert (whole / "command.txt").read_text().strip()
    assert list((whole / "tensorboard").iterdir())
    rows = read_metrics(whole)
    assert [row["step"] for row in rows] == list(range(6))
    assert rows[-1].keys() >= {"loss", "lr", "grad_norm", "param_norm", "update_norm"}
    assert rows[-1].keys() >= {"volumes_per_second", "data_wait", "mfu"}
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_broken_run_goes_on_bit_for_bit(whole: Path, prepared: str, home: Path) -> None:
    experiment = tiny.experiment(prepared, name="broken")
    shutil.copytree(whole, home / "runs/broken")
    (home / "runs/broken/config.json").write_text(
        (whole / "config.json").read_text().replace('"whole"', '"broken"')
    )
    shutil.rmtree(home / "runs/broken/checkpoints/6")
    folder = train(experiment)
    before, after = weights(whole, experiment), weights(folder, experiment)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    losses = [[row["loss"] for row in read_metrics(run)] for run in (whole, folder)]
    assert losses[0] == losses[1]


def test_damage_is_found_and_the_step_before_is_taken(
    whole: Path, prepared: str, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = home / "runs/damaged"
    shutil.copytree(whole, run)
    state = run / "checkpoints/6/state"
    victim = max((p for p in state.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert checkpoint.newest_readable(run) == 3
    assert "files missing or changed" in caplog.text
    (run / "checkpoints/3/manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"step 6: files.*step 3: it was never finished"):
        checkpoint.newest_readable(run)


def test_training_goes_on_after_damage_at_any_interval(
    whole: Path, prepared: str, home: Path
) -> None:
    run = home / "runs/mended"
    shutil.copytree(whole, run)
    (run / "config.json").write_text(
        (whole / "config.json").read_text().replace('"whole"', '"mended"')
    )
    (run / "checkpoints/6/manifest.json").unlink()
    # The next save is below the damaged step, where Orbax by itself would refuse it.
    experiment = tiny.experiment(prepared, name="mended", save_every=2)
    before, after = weights(whole, experiment), weights(train(experiment), experiment)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    assert [p.name.split("-")[:2] for p in run.glob("damaged-*")] == [["damaged", "6"]]


def test_a_signal_saves_and_ends_the_run(
    whole: Path, prepared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny.experiment(prepared, name="signalled")
    write = MetricsWriter.write

    def interrupt(writer: MetricsWriter, step: int, metrics: dict) -> None:
        write(writer, step, metrics)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with (
        monkeypatch.context() as patch,
        pytest.raises(Interrupted, match=r"SIGTERM came: saved at step \d of 6"),
    ):
        patch.setattr(MetricsWriter, "write", interrupt)
        train(experiment)
    assert checkpoint.newest_readable("runs/signalled") < 6
    before, after = weights(whole, experiment), weights(train(experiment), experiment)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)


def test_loading_options_may_change_between_start_and_continuation(
    whole: Path, prepared: str
) -> None:
    experiment = tiny.experiment(prepared, name="whole")
    train(dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, workers=1)))
    other = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, units="raw"))
    with pytest.raises(DataError, match="has values in 'HU', but the config expects 'raw'"):
        train(other)


def test_a_run_with_another_config_is_refused(whole: Path, prepared: str) -> None:
    changed = tiny.experiment(prepared, name="whole", seed=1, optimizer=AdamW(1.0))
    with pytest.raises(
        RunError, match=r"another optimizer.learning_rate, seed.*Cure: choose another --name"
    ):
        train(changed)


class MaskReader(MAE):
    """A task that reads a field which the data does not have."""

    def loss(self, params: Any, batch: Any, keys: Any, *, train: bool) -> Any:
        return super().loss(params, batch | {"image": batch["mask"]}, keys, train=train)


@dataclasses.dataclass(frozen=True)
class Picky(SplitEvaluator):
    """An evaluator that no task fits."""

    def check_task(self, task: Any) -> None:
        raise EvaluationError(f"{type(task).__name__} does not fit.")

    def predict(self, subject: Any, batch: Any) -> Any:
        raise AssertionError

    def score(self, subject: Any, predictions: Any) -> Any:
        raise AssertionError


def _refused(experiment: Experiment, error: type[Exception], problem: str) -> None:
    """Training raises, and leaves no folder behind."""
    with pytest.raises(error, match=problem):
        train(experiment)
    assert not Path("runs", experiment.name).exists()


def test_a_config_that_cannot_run_leaves_no_folder(prepared: str) -> None:
    """Before anything is written: the batch and the mesh, the task and its fields, evaluators."""
    good = tiny.experiment(prepared, name="cannot")
    eight = dataclasses.replace(good, mesh=(8, 1, 1))
    few = dataclasses.replace(eight, data=dataclasses.replace(good.data, batch_size=4))
    _refused(few, ConfigError, r"batch_size=4 cannot be split over data x fsdp = 8 devices")
    reader = dataclasses.replace(good, task=MaskReader(**vars(good.task)))
    problem = "MaskReader reads 'mask', and a batch has image, offset, scale.*Cure: add a field"
    _refused(reader, ConfigError, problem)
    unfit = dataclasses.replace(good, evaluators={"picky": Picky()})
    _refused(unfit, EvaluationError, "MAE does not fit")
    train(dataclasses.replace(good, steps=1))  # the same name is free
    assert run_folder.steps_in("runs/cannot") == [1]


def test_a_run_that_saved_nothing_does_not_block_its_name(prepared: str) -> None:
    first = tiny.experiment(prepared, name="again", steps=1)
    folder = run_folder.open_for_training(first)
    changed = dataclasses.replace(first, seed=5)
    assert run_folder.open_for_training(changed) == folder
    assert run_folder.read_experiment(folder).seed == 5
    (folder / "frozen").mkdir()  # arrays of the run are there
    with pytest.raises(RunError, match="another seed"):
        run_folder.open_for_training(first)


def test_a_checkpoint_of_another_model_is_refused(whole: Path, prepared: str) -> None:
    other = tiny.experiment(prepared)
    vision = other.task.vision.clone(hidden_size=32)
    other = dataclasses.replace(other, task=dataclasses.replace(other.task, vision=vision))
    shapes = jax.eval_shape(other.task.init, jax.random.key(0), specification(other))
    with pytest.raises(
        CheckpointError, match=r"another model(.|\n)*\(64, 16\) there, \(64, 32\) here"
    ):
        load_params(whole, params.flatten(shapes))


def test_nan_stops_the_run_and_keeps_the_last_good_parameters(prepared: str) -> None:
    # An infinite factor turns the input, and with it the loss, into NaN.
    inputs = Inputs(augment=Augment(scale=float("inf"), jitter=1.0))
    experiment = tiny.experiment(prepared, name="nan", inputs=inputs)
    with pytest.raises(NonFiniteError, match=r"step 0: not finite: loss, mae_decoder, vision"):
        train(experiment)
    assert all(np.isfinite(value).all() for value in weights(Path("runs/nan"), experiment).values())


def test_frozen_parameters_cost_nothing_and_never_move(whole: Path, prepared: str) -> None:
    experiment = tiny.experiment(
        prepared,
        name="frozen",
        trainable="mae_decoder/",
        init_from={"vision": "runs/whole"},
        groups=(Group("mae_decoder/predict", lr_scale=0.1),),
        steps=2,
    )
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1])
    state = abstract_state(experiment, mesh)
    assert all(path.startswith("mae_decoder/") for path in state.opt_state[1].mu)
    folder = train(experiment)
    before, after = weights(whole, experiment), weights(folder, experiment)
    for path in before:
        moved = not np.array_equal(before[path], after[path])
        assert moved == path.startswith("mae_decoder/"), path


def test_init_from_takes_the_named_component_only(whole: Path, prepared: str) -> None:
    still = AdamW(1e-12, "constant", warmup=0, weight_decay=0)
    experiment = tiny.experiment(
        prepared,
        name="second",
        init_from={"vision": "runs/whole"},
        optimizer=still,
        steps=1,
        seed=5,
    )
    before, after = weights(whole, experiment), weights(train(experiment), experiment)
    for path in before:
        close = np.allclose(before[path], after[path], atol=1e-6)
        learned = path.endswith("kernel") or path == "mae_decoder/mask_token"
        if path.startswith("vision/"):
            assert close, path
        elif learned:
            assert not close, path
    with pytest.raises(ValueError, match="no component 'text'"):
        train(tiny.experiment(prepared, name="third", init_from={"text": "runs/whole"}))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run \(no config.json\)"):
        run_folder.read_experiment(tmp_path)
    with pytest.raises(CheckpointError, match="nothing was saved"):
        checkpoint.newest_readable(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config.json: is damaged.*Cure"):
        run_folder.read_experiment(tmp_path)


def test_sizes_that_do_not_divide_are_explained(prepared: str) -> None:
    data = dataclasses.replace(tiny.experiment(prepared).data, size=(8, 16, 18))
    with pytest.raises(ValueError, match="side W of the volume has 18 voxels.*a size of 16 or 20"):
        train(tiny.experiment(prepared, name="sizes", data=data))
    with pytest.raises(
        ValueError, match="gradient_accumulation_steps=3 does not divide batch_size=8"
    ):
        tiny.experiment(prepared, gradient_accumulation_steps=3)
