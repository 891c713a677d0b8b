"""Volumes and language on 1 device and on meshes of 8: training and answers are the same."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from m3djax import params as params_lib
from m3djax.adapters import Adapted, LoRA
from m3djax.evaluate.answers.answerers import Seeing, placed
from m3djax.evaluate.answers.table import Row
from m3djax.experiment import Experiment
from m3djax.generate.sampling import Sampling
from m3djax.generate.volumes import VolumeReader
from m3djax.inputs.inputs import IMAGE, Inputs
from m3djax.mesh import sharding
from m3djax.optim import AdamW
from m3djax.params import Params
from m3djax.runs.state import trainer_of
from tests import tiny

TASK = tiny.vision_language()
LORA = LoRA(rank=4, alpha=8.0, dropout=0.3)
# See test_mesh: with a small epsilon rounding decides where parameters without gradient go.
SMOOTH = AdamW(1e-2, eps=1e-3)
EXPERIMENTS = {
    "whole": tiny.experiment(task=TASK, optimizer=SMOOTH),
    "adapters": tiny.experiment(
        task=TASK,
        adapters=LORA,
        optimizer=SMOOTH,
        trainable=r".*lora_[ab]|projector/.*|llm/token_embed/.*",
    ),
}
QUESTIONS = ("a", "bcd", "ef", "ghijk", "l")
ROWS = (2, 0, 1, 1, 7)
OPTIONS = Sampling(max_new_tokens=6)


def one() -> Mesh:
    return sharding.make_mesh((1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module", params=EXPERIMENTS)
def alone(request: pytest.FixtureRequest) -> tuple[Experiment, Any, Any, list[dict[str, Any]]]:
    """An experiment, where it starts, and where one device ends."""
    config = EXPERIMENTS[request.param]
    start = jax.device_get(jax.jit(trainer_of(config).init)(jax.random.key(0)))
    state, history = tiny.updates(config, one(), tiny.dialogue_batch, start=start, steps=3)
    return config, start, state, history


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2)], ids=str)
def test_updates_equal_those_of_one_device(
    shape: tuple[int, int, int], alone: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Adapters' dropout and augmentation included: they are drawn per sample."""
    config, start, state, theirs = alone
    mesh = sharding.make_mesh(shape)
    found, ours = tiny.updates(config, mesh, tiny.dialogue_batch, start=start, steps=3)
    for here, there in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(here["loss"], there["loss"], rtol=5e-6)
        np.testing.assert_allclose(here["grad_norm"], there["grad_norm"], rtol=5e-5)
    # Three updates move a parameter by up to 3e-2.
    assert tiny.largest_difference(found.trainable, state.trainable) < 2e-5
    assert tiny.largest_difference(state.trainable, start.trainable) > 1e-3
    for path, leaf in start.frozen.items():
        np.testing.assert_array_equal(found.frozen[path], leaf, err_msg=path)
    assert "rematerialization" not in capfd.readouterr().err, "a tensor is gathered by accident"


def prompt(question: str, _form: str = "") -> list[int]:
    """bos, four placeholders, and a letter for each word."""
    return [1, *[60] * 4, *(ord(letter) % 50 + 3 for letter in question)]


PROMPTS = [prompt(question) for question in QUESTIONS]


@pytest.fixture(scope="module")
def params() -> Params:
    """With adapters that do something; as it is drawn, the model would say the same to all."""
    drawn = jax.jit(Adapted(TASK, LORA).init)(jax.random.key(0), tiny.dialogue_batch())
    larger = jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf, drawn)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.1 if path[-1].key == "lora_b" else leaf, larger
    )


@pytest.fixture(scope="module")
def said(params: Params) -> list[tuple[int, ...]]:
    """What one device answers."""
    reader = VolumeReader(TASK, Inputs().bound(IMAGE), LORA.merged(params))
    answers = reader.answer(reader.read(tiny.batch(3)), PROMPTS, OPTIONS, rows=ROWS)
    tokens = [answer.tokens for answer in answers]
    assert len(set(tokens)) > 2
    return tokens


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2), (1, 1, 8), (8, 1, 1)], ids=str)
def test_answers_equal_those_of_one_device(
    shape: tuple[int, int, int], params: Params, said: list[tuple[int, ...]]
) -> None:
    """Also where two heads of keys cannot be split over eight devices; as evaluation asks."""
    mesh = sharding.make_mesh(shape)
    reader = VolumeReader(
        TASK, Inputs().bound(IMAGE), LORA.merged(placed(params, mesh, TASK)), mesh=mesh
    )
    seeing = Seeing(reader, prompt, OPTIONS, mesh)
    asked = [Row(0, 0, n, (0, 0, 0), "open", "", q, {}, "") for n, q in enumerate(QUESTIONS)]
    answers = seeing.answer(seeing.look(tiny.batch(3)), asked, ROWS)
    assert [answer.tokens for answer in answers] == said


def test_a_volume_for_itself_on_a_mesh(params: Params) -> None:
    """As `ask` does: one volume, all devices over the model."""
    batch, mesh = tiny.batch(4, rows=1), sharding.make_mesh((1, 1, -1))
    reader = VolumeReader(TASK, Inputs().bound(IMAGE), LORA.merged(params))
    alone = reader.answer(reader.read(batch), PROMPTS, OPTIONS)
    split = VolumeReader(
        TASK, Inputs().bound(IMAGE), LORA.merged(placed(params, mesh, TASK)), mesh=mesh
    )
    together = split.answer(split.read(batch), PROMPTS, OPTIONS)
    assert [a.tokens for a in together] == [a.tokens for a in alone]


def test_merged_parameters_stay_where_they_were(params: Params) -> None:
    mesh = sharding.make_mesh((1, 4, 2))
    merged = LORA.merged(placed(params, mesh, TASK))
    path = "llm/stages_0/block/mlp/gate/kernel"
    kernel = params_lib.flatten(merged)[path]
    assert kernel.sharding.spec == sharding.parameter_spec(path, kernel.shape, mesh, TASK)
