from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import tyro

from data_pipelines.errors import ConfigError
from m3djax.cli import load_config
from m3djax.config import registry
from m3djax.config.serialize import dumps, from_json, to_json
from m3djax.experiment import Experiment
from m3djax.optim import AdamW
from m3djax.runs.sharding_table import sharding_table
from m3djax.training.train import Loop

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    p
    for p in (ROOT / "configs").rglob("*.py")
    # A loop that generates text is planned, and is no experiment.
    if p.name not in ("__init__.py", "plans.py", "llama2_7b_decode.py")
)


@pytest.fixture(params=CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def config(request: pytest.FixtureRequest) -> Experiment:
    return load_config(str(request.param))


def test_json_round_trip(config: Experiment) -> None:
    assert from_json(json.loads(dumps(config))) == config


def test_command_line_without_overrides_changes_nothing(config: Experiment) -> None:
    assert tyro.cli(Experiment, default=config, args=[]) == config


def test_every_config_builds_and_every_parameter_has_a_place(config: Experiment) -> None:
    """No data, no tokenizer and no weights are needed for that."""
    config.task.check(config.data)
    table = sharding_table(dataclasses.replace(config, mesh=(4, 8, 2)))
    assert len(table.splitlines()) > 12


def test_overrides_reach_modules() -> None:
    default = load_config(str(ROOT / "configs/quickstart.py"))
    layers = ("--task.vision.transformer.num-layers", "2")
    arguments = [*layers, "--data.batch-size", "8", "--mesh", "1", "1", "1"]
    config = tyro.cli(Experiment, default=default, args=arguments)
    assert config.task.vision.transformer.num_layers == 2
    assert (
        dataclasses.replace(config, task=default.task, data=default.data, mesh=(-1, 1, 1))
        == default
    )
    assert config.data == dataclasses.replace(default.data, batch_size=8)


def test_a_typing_error_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    default = load_config(str(ROOT / "configs/quickstart.py"))
    with pytest.raises(SystemExit):
        tyro.cli(Experiment, default=default, args=["--data.batchsize", "8"])
    assert "--data.batch-size" in capsys.readouterr().err


def test_unknown_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'subprocess:Popen' is of the package 'subprocess'"):
        from_json({"class": "subprocess:Popen", "args": ["true"]})
    with pytest.raises(ConfigError, match="'read' does not exist in this version"):
        from_json({"class": "read", "path": "."})  # a function that a facade exports
    with pytest.raises(ConfigError, match="'Gone' does not exist in this version"):
        from_json({"class": "m3djax.moved:Gone"})


def test_an_allowed_package_must_hold_a_config_class() -> None:
    registry.allow("subprocess", "not_installed")
    with pytest.raises(ConfigError, match="'subprocess:Popen' does not exist in this version"):
        from_json({"class": "subprocess:Popen", "args": ["true"]})
    with pytest.raises(ConfigError, match=r"No module named 'not_installed'.*install the package"):
        from_json({"class": "not_installed:Task"})


def test_classes_that_could_not_be_read_back_are_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Local:
        """Of no module."""

    with pytest.raises(ConfigError, match=r"Local cannot be imported.*top level of a module"):
        to_json(Local())
    with pytest.raises(ConfigError, match="m3djax.training.train:Loop is not exported"):
        registry.name_of(Loop)


def test_names_of_classes_are_unique() -> None:
    names = [
        name for facade in registry.FACADES for name in importlib.import_module(facade).__all__
    ]
    assert len(names) == len(set(names))


def test_later_formats_are_refused() -> None:
    saved = {**to_json(AdamW()), "format": 99}
    with pytest.raises(ConfigError, match="has format 99.*use the version that saved"):
        from_json(saved)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"AdamW.*another version.*momentum"):
        from_json({"class": "m3djax.optim:AdamW", "momentum": 0.9})


def test_only_plain_values_can_be_configured() -> None:
    with pytest.raises(TypeError, match="cannot be part of a config"):
        to_json({"x": object()})
