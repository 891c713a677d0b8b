"""The verb `plan` with a tiny model for an absent slice, and its errors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jax
import pytest

from data_pipelines.errors import ConfigError
from m3djax.cli import main
from m3djax.mesh import sharding
from m3djax.plan import collectives, record
from m3djax.plan.hlo import Program
from m3djax.plan.options import USAGE
from m3djax.plan.targets import TrainStep
from m3djax.plan.topology import Topology
from m3djax.runs.state import specification
from m3djax.training import flops
from tests import tiny

# The test session keeps compiled programs; libtpu cannot read its own back without a TPU.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")

CONFIG = "from tests import tiny\n\n\ndef get_config():\n    return tiny.experiment()\n"


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "config.py").write_text(CONFIG)
    return str(tmp_path / "config.py")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> record.PlanRecord:
    """The tiny model on a slice of four chips; no data, no TPU."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "config.py").write_text(CONFIG)
    arguments = [
        "--topology",
        "v5e:2x2",
        "--json",
        str(folder / "plan.json"),
        "--mesh",
        "4",
        "1",
        "1",
    ]
    assert main(["plan", str(folder / "config.py"), *arguments]) == 0
    return json.loads((folder / "plan.json").read_text())


def test_memory_adds_up(planned: record.PlanRecord) -> None:
    memory = planned["memory"]
    parameters = planned["parameters"]["trained"]
    # Parameters and two moments in float32, in place; the batch is 2 of 8 x 16 x 16 int16.
    assert memory["outputs_in_place"] > 3 * 4 * parameters
    assert memory["arguments"] - memory["outputs_in_place"] > 2 * 8 * 16 * 16 * 2
    assert memory["limit"] == int(15.75 * 2**30)
    assert 0.9 < memory["free_share"] < 1


def test_data_parallel_means_gradients_are_reduced_and_nothing_else(
    planned: record.PlanRecord,
) -> None:
    (kind,) = planned["collectives"]
    row = planned["collectives"][kind]
    assert kind == "all-reduce"
    gradients = 4 * planned["parameters"]["trained"]
    # Every gradient once, in float32; the loss, its weight and what checks them add little.
    assert gradients < row["payload_bytes"] < gradients + 2048
    assert row["wire_bytes"] == pytest.approx(2 * row["payload_bytes"] * 3 / 4)
    assert planned["loops_of_unknown_length"] == []


def test_work_is_counted(planned: record.PlanRecord) -> None:
    e = tiny.experiment()
    model = flops.model_flops(e.task, specification(e), e.trainable)
    assert planned["flops"]["model"] == model // 4
    assert planned["flops"]["executed"] == model // 4  # nothing is computed twice
    assert planned["flops"]["executed_padded"] > 10 * planned["flops"]["executed"]
    bounds, padded = planned["bounds"], planned["bounds_with_tile_padding"]
    for row in (bounds, padded):
        terms = [row[f"{term}_ms"] for term in ("compute", "hbm", "links", "network")]
        assert row["step_ms"] == max(terms)
        assert 0 < row["mfu"] < 1
    assert padded["compute_ms"] > bounds["compute_ms"]


def test_the_record_says_what_was_planned(planned: record.PlanRecord) -> None:
    e = tiny.experiment(mesh=(4, 1, 1))
    assert planned["step"] == "train step"
    assert planned["hash"] == record.config_hash(TrainStep(e), Topology("v5e:2x2"))
    assert planned["hash"] != record.config_hash(TrainStep(e), Topology("v5e:2x4"))
    other = TrainStep(tiny.experiment())
    assert planned["hash"] != record.config_hash(other, Topology("v5e:2x2"))
    # What the step does not depend on leaves the plan fresh.
    same = tiny.experiment("elsewhere", mesh=(4, 1, 1), name="other", save_every=1)
    assert planned["hash"] == record.config_hash(TrainStep(same), Topology("v5e:2x2"))
    assert planned["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    assert planned["batch"] == {"global": 8, "per_device": 2, "accumulate": 1}
    assert set(planned["versions"]) == {"jax", "libtpu"}


def test_what_does_not_fit_is_refused_with_its_size(config: str, capsys) -> None:
    rows = str(4 * 10**6)
    assert main(["plan", config, "--topology", "v5e:2x2", "--data.batch-size", rows]) == 1
    error = capsys.readouterr().err
    assert "the step needs" in error and "v5e:2x2 has 15.75 GiB. Cure: --fit" in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology", "v9:2x2"], "'v9' is not one of v4, v5e"),
        (["--topology", "v5e:4x4x4"], "v5e needs 2 side"),
        (["--topology", "v5e:32x32"], "the largest slice of v5e is 16x16"),
        (["--topology", "v5e"], "does not have the form FAMILY:SIDExSIDE"),
        (["--topology", "h100:8", "--slices", "2"], "several hosts of GPUs"),
        (["--topology", "v5e:2x2", "--mesh", "3", "1", "1"], "does not fit 4 devices"),
        (["--topology", "v5e:2x2", "--data.batch-size", "6"], "Cure: a multiple of 4"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    arguments: list[str], message: str, config: str, capsys
) -> None:
    assert main(["plan", config, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_missing_compilers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="libtpu.*requirements-plan.txt"):
        Topology("v5e:2x2").devices()
    with pytest.raises(ConfigError, match="CUDA plugin.*requirements-plan-gpu.txt"):
        Topology("h100:8").devices()


def test_usage_without_a_config(capsys) -> None:
    assert main(["plan"]) == 2
    assert USAGE in capsys.readouterr().err


def test_two_slices_reduce_over_the_network_what_they_have_reduced_inside() -> None:
    mesh = sharding.make_mesh((2, 4, 1), Topology("v5e:2x2", slices=2).devices())
    rows = jax.ShapeDtypeStruct((64, 512), "float32", sharding=sharding.batch_sharding(mesh))
    whole = jax.NamedSharding(mesh, jax.P())
    product = jax.jit(lambda x: x.T @ x, out_shardings=whole)
    found = collectives.find(Program(product.lower(rows).compile().as_text()), 8, slices=2)
    between = [each for each in found if each.between_slices]
    inside = [each for each in found if not each.between_slices]
    assert {each.kind for each in between} == {"all-reduce"}
    assert {len(each.group) for each in inside} == {4}
    # Each chip of a slice sends a quarter of the matrix to its twin, there and back.
    assert sum(each.wire for each in between) == pytest.approx(512 * 512 * 4 / 4, rel=0.05)
