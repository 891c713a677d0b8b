"""The same training on 1 device and on any mesh of 8."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from m3djax.cli import load_config
from m3djax.mesh import sharding
from m3djax.optim import AdamW
from m3djax.runs.sharding_table import sharding_table
from m3djax.runs.state import abstract_state, trainer_of
from m3djax.step import TrainState, compile_step
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]
MESHES = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 8, 1), (1, 4, 2), (1, 1, 8)]
# With a larger epsilon Adam's update is smooth in the gradient; at 1e-8 a gradient that is zero
# but for rounding moves a parameter by a whole step, in a random direction.
SMOOTH = AdamW(1e-2, eps=1e-3)


@pytest.fixture(scope="module")
def alone() -> tuple[TrainState, list[dict]]:
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    return tiny.updates(tiny.experiment(optimizer=SMOOTH), mesh)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_five_updates_equal_those_of_one_device(
    shape: tuple[int, int, int],
    alone: tuple[TrainState, list[dict]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    state, history = tiny.updates(tiny.experiment(optimizer=SMOOTH), sharding.make_mesh(shape))
    for here, there in zip(history, alone[1], strict=True):
        np.testing.assert_allclose(here["loss"], there["loss"], rtol=2e-6)
        np.testing.assert_allclose(here["grad_norm"], there["grad_norm"], rtol=1e-5)
    # Five updates move a parameter by up to 5e-2.
    assert tiny.largest_difference(state.trainable, alone[0].trainable) < 1e-5
    assert "rematerialization" not in capfd.readouterr().err, "a tensor is gathered by accident"


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_is_the_same_training(
    parts: int, alone: tuple[TrainState, list[dict]]
) -> None:
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    _state, history = tiny.updates(
        tiny.experiment(gradient_accumulation_steps=parts, optimizer=SMOOTH), mesh
    )
    for here, there in zip(history, alone[1], strict=True):
        np.testing.assert_allclose(here["loss"], there["loss"], rtol=5e-6)
        np.testing.assert_allclose(here["grad_norm"], there["grad_norm"], rtol=5e-5)


def test_parameters_and_moments_are_split_alike() -> None:
    mesh = sharding.make_mesh((2, 2, 2))
    state = abstract_state(tiny.experiment(), mesh)
    path = "vision/transformer/block/mlp/fc1/kernel"
    moments = state.opt_state[1]
    wanted = jax.sharding.PartitionSpec(None, ("fsdp",), ("tensor",))
    assert state.trainable[path].sharding.spec == wanted
    assert moments.mu[path].sharding.spec == moments.nu[path].sharding.spec == wanted
    assert moments.count.sharding.is_fully_replicated


@pytest.mark.parametrize("name", ["quickstart", "e3d_gpt/mae", "m3d/clip"])
def test_the_printed_table_is_as_it_was(name: str) -> None:
    """If a change is meant: python run.py train CONFIG --print-sharding --mesh 4 8 2 > FILE."""
    config = dataclasses.replace(load_config(ROOT / f"configs/{name}.py"), mesh=(4, 8, 2))
    wanted = pathlib.Path(__file__).parent / "tables" / f"{name.replace('/', '_')}.txt"
    assert sharding_table(config) == wanted.read_text().rstrip("\n")


def test_kernels_are_gathered_and_activations_stay() -> None:
    """With weights over fsdp, what moves is weights and gradients: nothing with a batch in it."""
    mesh = sharding.make_mesh((1, 8, 1))
    experiment = tiny.experiment()
    with jax.set_mesh(mesh):
        batch = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.batch_sharding(mesh))
            for name, x in tiny.batch().items()
        }
        state = abstract_state(experiment, mesh)
        step = compile_step(trainer_of(experiment), mesh)
        text = step.lower(state, batch, jax.random.key(1)).compile().as_text()
    assert "all-gather" in text and "collective-permute" not in text and "all-to-all" not in text
    kernels = {tuple(leaf.shape[-2:]) for leaf in state.trainable.values() if leaf.ndim > 1}
    for shape in re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text):
        assert tuple(map(int, shape.split(",")))[-2:] in kernels, shape


def test_what_cannot_be_split_is_kept_whole(caplog: pytest.LogCaptureFixture) -> None:
    mesh = sharding.make_mesh((1, 8, 1))
    with caplog.at_level("INFO"):
        spec = sharding.parameter_spec("vision/patch_embed/kernel", (64, 20), mesh, tiny.mae())
    assert spec == jax.sharding.PartitionSpec(None, None)
    assert "dimension 20 (embed) is not divisible" in caplog.text


def test_a_mesh_that_does_not_fit_is_an_error() -> None:
    assert dict(sharding.make_mesh((-1, 2, 1)).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    with pytest.raises(ValueError, match=r"mesh=\(3, 1, 1\) does not fit 8 devices"):
        sharding.make_mesh((3, 1, 1))
    with pytest.raises(ValueError, match="does not fit"):
        sharding.make_mesh((-1, -1, 1))


def test_every_process_of_one_makes_the_whole_batch() -> None:
    assert sharding.process_rows(sharding.make_mesh((4, 1, 2)), 8) == tuple(range(8))
    with pytest.raises(ValueError, match="batch_size=6 cannot be split"):
        sharding.process_rows(sharding.make_mesh((8, 1, 1)), 6)


@pytest.mark.parametrize("shape", [(16, 1, 1), (4, 4, 1), (4, 1, 4), (1, 1, 16)], ids=str)
def test_hosts_of_a_torus_share_out_the_rows(shape: tuple[int, int, int]) -> None:
    """On v5e:4x4 a ring over all chips comes past every host more than once."""
    pytest.importorskip("libtpu")
    devices = topologies.get_topology_desc("v5e:4x4", "tpu").devices
    held = sharding.rows_by_process(sharding.make_mesh(shape, list(devices)), 32)
    assert sorted(held) == [0, 1, 2, 3]
    copies = sum(len(rows) for rows in held.values()) // 32
    assert sorted(sum(held.values(), ())) == sorted([*range(32)] * copies)
    assert len({len(rows) for rows in held.values()}) == 1
    for one, two in itertools.combinations(held.values(), 2):
        assert one == two or not set(one) & set(two)
