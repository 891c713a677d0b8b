"""The Clip task: what it needs, its heads, dtypes, and where its towers may come from."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from data_pipelines.fields.image import Image
from data_pipelines.fields.text import Text
from data_pipelines.pipeline import Data, Source
from data_pipelines.text.tokens import ReportTokens
from m3djax import params as params_lib
from m3djax.config.serialize import dumps, from_json, to_json
from m3djax.experiment import Experiment
from m3djax.losses.contrastive import SigmoidPairs
from m3djax.mesh import sharding
from m3djax.models.embedding_head import AttentionPool, EmbeddingHead
from m3djax.runs.checkpoint import Checkpointer
from m3djax.runs.state import abstract_state, initial_state, trainer_of
from m3djax.step import TrainState, sample_keys
from tests import tiny
from tests.unit.fakes import init

KEYS = sample_keys(jax.random.key(0), 0, 8)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return init(tiny.clip())


def test_parts_of_a_batch_are_another_loss() -> None:
    with pytest.raises(
        ConfigError,
        match="accumulation_steps=2: Clip compares the samples.*accumulation_steps=1",
    ):
        tiny.experiment(task=tiny.clip(), gradient_accumulation_steps=2)
    assert tiny.experiment(gradient_accumulation_steps=2).gradient_accumulation_steps == 2


def test_configs_survive_json() -> None:
    for task in (tiny.clip(), tiny.clip(objective=SigmoidPairs(form="dense"))):
        experiment = tiny.experiment(task=task)
        assert from_json(to_json(experiment)) == experiment and "Clip" in dumps(experiment)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_padding_and_its_amount_do_not_matter(pooling: Any) -> None:
    head = EmbeddingHead(6, pooling, AttentionPool(2))
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, 7, 8)).astype(np.float32)
    mask = np.arange(7) < np.array([[7], [3], [1]])
    params, apply = head.init(jax.random.key(0), tokens, None, mask), jax.jit(head.apply)
    unit = apply(params, tokens, None, mask)
    np.testing.assert_allclose(jnp.linalg.norm(unit, axis=-1), 1, rtol=1e-5)
    other = np.where(mask[..., None], tokens, np.float32(99))
    np.testing.assert_allclose(apply(params, other, None, mask), unit, atol=1e-6)
    short = head.apply(params, tokens[1:2, :3])
    np.testing.assert_allclose(short[0], unit[1], atol=1e-6)


def test_vectors_are_float32_and_finite_even_from_nothing() -> None:
    head = EmbeddingHead(6, "mean")
    tokens = jnp.zeros((2, 3, 8), jnp.bfloat16)
    params = head.init(jax.random.key(0), tokens)
    assert head.apply(params, tokens).dtype == jnp.float32
    gradient = jax.grad(lambda x: head.apply(params, x).sum())(tokens)
    assert jnp.isfinite(gradient).all()
    with pytest.raises(ConfigError, match='pooling="cls" needs a class token'):
        EmbeddingHead(6, "cls").init(jax.random.key(0), tokens)
    with pytest.raises(ConfigError, match="num_heads=3 does not divide the width 8"):
        EmbeddingHead(6, "attention", AttentionPool(3)).init(jax.random.key(0), tokens)
    with pytest.raises(ConfigError, match="must be equal"):
        tiny.clip(text_head=EmbeddingHead(7))


@pytest.fixture(scope="module")
def forward(params: dict[str, Any]) -> Any:
    """Loss, image vectors and text vectors of a batch."""
    task = tiny.clip()

    @jax.jit
    def run(batch: dict[str, Any]) -> tuple[Any, jax.Array, jax.Array]:
        batch = tiny.network(batch)
        image = task.embed_images(params, batch["image"])
        text = task.embed_texts(params, batch["token_ids"], batch["attention_mask"])
        return task.loss(params, batch, KEYS, train=False), image, text

    return lambda batch: run({"report_valid": np.ones(8, bool)} | batch)


def test_half_precision_towers_give_float32_losses(params: dict[str, Any], forward: Any) -> None:
    task, batch = tiny.clip(), tiny.text_batch()
    half = dataclasses.replace(
        task,
        vision=dataclasses.replace(task.vision, dtype="bfloat16"),
        text=dataclasses.replace(task.text, dtype="bfloat16"),
    )
    loss = jax.jit(lambda p: half.loss(p, tiny.network(batch), KEYS, train=False))(params)
    assert loss.total.dtype == jnp.float32
    np.testing.assert_allclose(loss.total, forward(batch)[0].total, rtol=0.02)


def test_rows_without_text_are_not_counted(params: dict[str, Any], forward: Any) -> None:
    batch, valid = tiny.text_batch(), np.arange(8) != 2
    marked, image, text = forward(batch | {"report_valid": valid})
    objective = {"params": params["objective"]}
    rows = image[valid], text[valid], batch["text_id"][valid], np.ones(7, bool)
    without = tiny.clip().objective.apply(objective, *rows)
    assert marked.weight == without.weight == 7
    np.testing.assert_allclose(marked.total, without.total, rtol=1e-5)


def test_texts_must_fit_the_tower() -> None:
    def data(**tokens: Any) -> Data:
        data = Data((Source("nowhere"),), fields={"image": Image()})
        return data.with_fields(text=Text(ReportTokens("nowhere", **tokens))) if tokens else data

    task = tiny.clip()
    task.check(data(vocab_size=50, length=16))
    for wrong, message in (
        ({}, "has no field 'text' of the class Text; it has 'image'"),
        ({"vocab_size": 51, "length": 16}, "vocab_size=51, and the text tower's table has 50"),
        ({"vocab_size": 50, "length": 17}, "texts have 17 tokens, and the text tower takes 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            task.check(data(**wrong))


def test_a_masked_autoencoder_is_the_vision_start(tmp_path: Any) -> None:
    """One line of config: init_from={"vision": RUN}."""
    mesh = sharding.make_mesh((8, 1, 1))
    mae = tiny.experiment()
    clip: Experiment = tiny.experiment(
        task=tiny.clip(vision=tiny.mae().vision), init_from={"vision": str(tmp_path)}
    )
    with jax.set_mesh(mesh):
        trained = jax.tree.map(
            lambda leaf: jax.device_put(np.full(leaf.shape, 5, leaf.dtype), leaf.sharding),
            abstract_state(mae, mesh),
        )
        fresh = sharding.sharded(mesh, clip.task, trainer_of(clip).init, jax.random.key(clip.seed))
        saver = Checkpointer(tmp_path)
        saver.save(trained, dumps(mae))
        saver.close()
        state = initial_state(clip, mesh)
    for path, leaf in state.trainable.items():
        wanted = 5 if path.startswith("vision/") else fresh.trainable[path]
        np.testing.assert_array_equal(leaf, wanted, err_msg=path)


def test_a_few_steps_learn_eight_pairs(params: dict[str, Any]) -> None:
    """Both towers, heads and the factor move, and the pairs are told apart."""
    trainer = trainer_of(tiny.experiment(task=tiny.clip(), steps=30))
    start, step = params_lib.flatten(params), jax.jit(trainer.step)
    moments = jax.jit(trainer.optimizer(start).init)(start)
    state = TrainState(jnp.zeros((), jnp.int32), start, moments, {})
    batch = tiny.text_batch()
    history = []
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(1))
        history.append({name: float(value) for name, value in metrics.items()})
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["image_to_text"] > 0.7 and 2 < history[-1]["scale"] < 4
    moved = {p for p, x in state.trainable.items() if not np.array_equal(x, start[p])}
    still = {p for p in start if p not in moved}
    assert all(p.startswith(("text/pooler", "text/embeddings/types")) for p in still), still
