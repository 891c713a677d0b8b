from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tyro

from m3djax.cli import load_config
from m3djax.experiment import Experiment, dumps, from_json, to_json
from m3djax.sharding_table import sharding_table

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


def test_foreign_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'subprocess:Popen' is not one of"):
        from_json({"class": "subprocess:Popen", "args": ["true"]})
    with pytest.raises(ValueError, match="does not exist in this version"):
        from_json({"class": "m3djax.experiment:dumps", "config": 1})
    with pytest.raises(ValueError, match="does not exist in this version"):
        from_json({"class": "m3djax.moved:Experiment"})


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValueError, match=r"AdamW.*another version.*momentum"):
        from_json({"class": "m3djax.optim:AdamW", "momentum": 0.9})


def test_only_plain_values_can_be_configured() -> None:
    with pytest.raises(TypeError, match="cannot be part of a config"):
        to_json({"x": object()})
