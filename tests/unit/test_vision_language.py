"""The task of questions about volumes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from m3djax.adapters import LoRA
from m3djax.contracts.task import apply
from m3djax.contracts.terms import Loss
from m3djax.inputs.inputs import IMAGE
from m3djax.models.projectors import Projector
from m3djax.optim import AdamW
from m3djax.params import Params, flatten
from m3djax.step import Trainer
from m3djax.tasks.vision_language import VisionLanguage
from tests import tiny

TASK = tiny.vision_language()
ROWS = 4


@pytest.fixture(scope="module")
def params() -> Params:
    return jax.jit(TASK.init)(jax.random.key(0), tiny.dialogue_batch())


def loss_of(task: VisionLanguage, params: Params, batch: dict[str, Any]) -> Loss:
    keys = jax.random.split(jax.random.key(0), len(batch["image"]))
    return jax.jit(lambda p, b: task.loss(p, tiny.network(b), keys, train=False))(params, batch)


def test_volumes_take_the_places_of_placeholders() -> None:
    """In order, wherever they are; other tokens stay."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 60, (2, 12))
    ids[0, [0, 3, 4, 11]] = ids[1, [1, 2, 3, 4]] = 60
    embeds, volumes = rng.normal(size=(2, 12, 3)), rng.normal(size=(2, 4, 3))
    placed = TASK.merge_image_features(jnp.asarray(embeds), jnp.asarray(volumes), jnp.asarray(ids))
    for row in range(2):
        wanted = embeds[row].copy()
        wanted[ids[row] == 60] = volumes[row]
        np.testing.assert_allclose(placed[row], wanted, rtol=1e-6)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_another_number_of_placeholders_is_refused(params: Params, count: int) -> None:
    """Where values are known with a message, in compiled code by a loss that is not finite."""
    batch = tiny.dialogue_batch(rows=ROWS)
    batch["token_ids"][2, 1:6] = 7
    batch["token_ids"][2, 1 : 1 + count] = 60
    keys = jax.random.split(jax.random.key(0), ROWS)
    with pytest.raises(ConfigError, match=f"text 2 has {count} image tokens.*become 4"):
        TASK.loss(params, tiny.network(batch), keys, train=False)
    assert not np.isfinite(loss_of(TASK, params, batch).total)


def test_rows_of_padding_need_no_placeholders(params: Params) -> None:
    """A sample without text is worth nothing, and does no harm."""
    batch = tiny.dialogue_batch(rows=ROWS)
    alone = loss_of(TASK, params, {name: value[1:] for name, value in batch.items()})
    for name in ("token_ids", "attention_mask", "spans"):
        batch[name][0] = 0
    found = loss_of(TASK, params, batch)
    np.testing.assert_allclose(found.total, alone.total, rtol=1e-5)
    assert found.weight == alone.weight


def test_only_answers_count_and_eos_is_one_of_them(params: Params) -> None:
    batch = tiny.dialogue_batch(rows=ROWS)
    found = loss_of(TASK, params, batch)
    first, end = batch["spans"][:, 0].T
    assert found.weight == np.sum(end - first)
    ids, valid = jnp.asarray(batch["token_ids"]), jnp.asarray(batch["attention_mask"])
    volumes = TASK.encode(params, tiny.network(batch)["image"])
    embeds = apply(TASK.llm, params["llm"], ids, method="embed")
    embeds = TASK.merge_image_features(embeds, volumes, ids)
    hidden, _ = apply(TASK.llm, params["llm"], embeds, valid, method="encode")
    logits = apply(TASK.llm, params["llm"], hidden, method="logits")
    chance = np.asarray(jax.nn.log_softmax(logits))
    wanted = 0.0
    for row in range(ROWS):
        assert ids[row, end[row] - 1] == 2
        for at in range(first[row], end[row]):
            wanted -= chance[row, at - 1, ids[row, at]]
    np.testing.assert_allclose(found.total, wanted, rtol=1e-5)


def test_several_volumes(params: Params) -> None:
    """Two volumes in one prompt, text between them; each is encoded as if it were alone."""
    batch = tiny.batch(rows=4)
    pairs = {name: batch[name].reshape(2, 2, *batch[name].shape[1:]) for name in batch}
    ids = np.full((2, 14), 5, np.int32)
    ids[:, 1:5] = ids[:, 6:10] = 60
    spans = np.array([[[11, 14]]] * 2, np.int32)
    fields = {"token_ids": ids, "attention_mask": ids > 0, "spans": spans}
    assert np.isfinite(loss_of(TASK, params, pairs | fields).total)
    both = TASK.encode(params, tiny.network(pairs)["image"])
    apart = TASK.encode(params, tiny.network(batch)["image"])
    np.testing.assert_allclose(both, apart.reshape(2, 8, 32), atol=1e-5)
    shared = pairs | {name: pairs[name][:, 0] for name in ("scale", "offset")}
    np.testing.assert_array_equal(tiny.network(shared)["image"], tiny.network(pairs)["image"])
    with pytest.raises(ConfigError, match="has 8 image tokens"):
        TASK.merge_image_features(jnp.zeros((2, 14, 32)), both[:, :4], jnp.asarray(ids))


def test_volumes_of_a_sample_are_augmented_alike() -> None:
    batch = tiny.batch(rows=2)
    twice = batch | {"image": np.stack([batch["image"]] * 2, axis=1)}
    keys = jax.random.split(jax.random.key(3), 2)
    images = tiny.INPUTS(twice, keys, IMAGE)["image"]
    np.testing.assert_array_equal(images[:, 0], images[:, 1])
    assert np.any(images[:, 0] != tiny.network(batch)["image"])


@pytest.mark.parametrize("layer", [0, -2, 1])
def test_any_layer_is_projected(params: Params, layer: int) -> None:
    images = tiny.network(tiny.batch(rows=2))["image"]
    features = apply(TASK.vision, params["vision"], images, hidden=(layer,))
    wanted = apply(TASK.projector, params["projector"], features.hidden[0])
    found = dataclasses.replace(TASK, vision_feature_layer=layer).encode(params, images)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.any(np.abs(found - TASK.encode(params, images)) > 1e-3)


def test_trains_what_it_is_told_to() -> None:
    """Adapters, projector and table move, all else is bit-equal; the loss falls."""
    pattern = r".*lora_[ab]|projector/|llm/token_embed/"
    experiment = tiny.experiment(
        task=TASK,
        adapters=LoRA(2, 4.0, 0.1),
        trainable=pattern,
        optimizer=AdamW(2e-2),
        steps=20,
    )
    batch = tiny.dialogue_batch()
    spec = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
    trainer = Trainer(experiment, spec)
    state = start = jax.jit(trainer.init)(jax.random.key(0))
    step, losses = jax.jit(trainer.step), []
    for _ in range(20):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.95 * losses[0]
    parts = {path.split("/")[0] for path in start.trainable}
    assert parts == {"llm", "projector"} and "llm/head/kernel" in start.frozen
    assert all(np.any(state.trainable[path] != start.trainable[path]) for path in start.trainable)
    assert all(np.array_equal(state.frozen[path], start.frozen[path]) for path in start.frozen)
    merged = experiment.merged(state.params)
    drawn = jax.eval_shape(TASK.init, jax.random.key(0), batch)
    assert flatten(merged).keys() == flatten(drawn).keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projector": Projector(16)}, "projector.features=16 must be the width"),
        ({"image_token_id": 64}, "none of the language model's 64 tokens"),
        ({"vision_feature_layer": 2}, "vision_feature_layer=2, and the encoder has 2 layers"),
        ({"vision_feature_layer": -3}, "vision_feature_layer=-3"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TASK, **changes)
