"""LoRA: what is trained, what it costs, dropout, and PEFT's folders."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipelines.errors import ConfigError, DataError
from data_pipelines.pipeline import Data, Source
from m3djax.adapters import Adapted, LoRA
from m3djax.config.serialize import dumps, from_json
from m3djax.convert import llm, peft
from m3djax.experiment import Experiment
from m3djax.mesh import sharding
from m3djax.params import flatten, unflatten
from m3djax.runs.checkpoint import CheckpointError, _check_adapters
from m3djax.step import Trainer, compile_step
from m3djax.tasks.language import Language
from tests import tiny_llm

ROWS, LENGTH = 8, 12


@pytest.fixture(scope="module")
def task() -> Adapted:
    language = Language(tiny_llm.pretrained("phi3").model, logits_chunk=8)
    return Adapted(language, LoRA(rank=4, alpha=8, dropout=0.0))


@pytest.fixture(scope="module")
def batch() -> dict[str, jax.Array]:
    ids = jax.random.randint(jax.random.key(5), (ROWS, LENGTH), 0, 258)
    spans = jnp.broadcast_to(jnp.array([[[4, LENGTH]]]), (ROWS, 1, 2))
    return {"token_ids": ids, "attention_mask": jnp.ones((ROWS, LENGTH), bool), "spans": spans}


@pytest.fixture(scope="module")
def flat(task: Adapted, batch: dict) -> dict[str, jax.Array]:
    """Adapters that do something: B is not zero."""
    params = flatten(jax.jit(task.init)(jax.random.key(0), batch))
    return {
        path: 0.1 * jax.random.normal(jax.random.key(1), leaf.shape) if "lora_b" in path else leaf
        for path, leaf in params.items()
    }


def experiment(task: Language, adapters: LoRA | None, trainable: str) -> Experiment:
    data = Data((Source("nowhere"),), size=(8, 16, 16), batch_size=ROWS)
    return Experiment("x", task, data, adapters=adapters, trainable=trainable)


def dropping(task: Adapted, dropout: float) -> Adapted:
    return dataclasses.replace(task, adapters=dataclasses.replace(task.adapters, dropout=dropout))


def keys() -> jax.Array:
    return jax.random.split(jax.random.key(9), ROWS)


def total(task: Adapted, flat: dict, batch: dict, *, train: bool = True) -> float:
    run = jax.jit(lambda f, b, k: task.loss(unflatten(f), b, k, train=train).total)
    return float(run(flat, batch, keys()))


def test_fresh_adapters_change_nothing(task: Adapted, batch: dict, flat: dict) -> None:
    fresh = jax.jit(task.init)(jax.random.key(0), batch)
    plain = task.task.loss(task.adapters.merged(fresh), batch, keys(), train=True).total
    np.testing.assert_allclose(total(task, flatten(fresh), batch), plain, rtol=1e-6)
    assert abs(total(task, flat, batch) - float(plain)) > 1e-2


def test_fused_projections_get_one_adapter(task: Adapted, flat: dict) -> None:
    layers = {path.rsplit("/", 2)[1] for path in flat if "lora_a" in path}
    assert layers == {"qkv", "out", "gate_up", "down"}
    block = "llm/stages_0/block"
    assert flat[f"{block}/attention/qkv/lora_b"].shape == (2, 4, (4 + 2 + 2) * 8)


def test_remat_changes_nothing(task: Adapted, batch: dict, flat: dict) -> None:
    stages = (dataclasses.replace(task.task.llm.stages[0], remat="full"),)
    model = dataclasses.replace(task.task.llm, stages=stages)
    same = dropping(task, 0.3)
    other = dataclasses.replace(same, task=Language(model, logits_chunk=8))

    def grads(task: Adapted) -> Any:
        def run(flat: dict) -> jax.Array:
            return task.loss(unflatten(flat), batch, keys(), train=True).total

        return jax.jit(jax.grad(run))(flat)

    one, two = grads(same), grads(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one, two)


def test_dropout_is_of_the_row_and_the_layer(task: Adapted, batch: dict, flat: dict) -> None:
    """Equal keys give equal masks, wherever a row stands; no mask in evaluation."""
    dropped = dropping(task, 0.5)
    assert total(dropped, flat, batch) == total(dropped, flat, batch)
    assert total(dropped, flat, batch) != total(task, flat, batch)
    assert total(dropped, flat, batch, train=False) == total(task, flat, batch, train=False)
    one = {name: value[2:3] for name, value in batch.items()}
    order = jnp.array([2, 0, 1, 3, 4, 5, 6, 7])
    run = jax.jit(lambda b, k: dropped.loss(unflatten(flat), b, k, train=True).total)
    rest = {name: value[order[1:]] for name, value in batch.items()}
    whole = run(batch, keys())
    parts = run(one, keys()[2:3]) + run(rest, keys()[order[1:]])
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    with pytest.raises(ConfigError, match="8 rows for a batch of 3"):
        dropped.loss(unflatten(flat), batch, keys()[:3], train=True)


def test_layers_of_a_stack_drop_other_inputs(task: Adapted) -> None:
    from m3djax.adapters import _drop, _salted

    tree = {"llm": {"block": {"lora_a": jnp.zeros((3, 4, 2)), "lora_b": jnp.zeros((3, 2, 4))}}}
    salts = flatten(_salted(tree))["llm/block/lora_salt"]
    x = jnp.ones((ROWS, 5, 64))
    masks = [_drop(x, 0.25, keys(), salt) for salt in salts]
    assert all(abs(float(jnp.mean(mask > 0)) - 0.75) < 0.03 for mask in masks)
    assert abs(float(jnp.mean(masks[0])) - 1) < 0.05
    assert 0.3 < float(jnp.mean(masks[0] != masks[1])) < 0.45  # 2 x 0.25 x 0.75


def test_the_base_has_neither_gradients_nor_moments(task: Adapted, batch: dict) -> None:
    """By count and by the compiler: full tuning of the same model needs several times as much."""
    spec = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])

    def cost(adapters: LoRA | None, trainable: str) -> tuple[int, int]:
        trainer = Trainer(experiment(language, adapters, trainable), spec)
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
        with jax.set_mesh(mesh):
            key = jax.eval_shape(lambda: jax.random.key(0))
            memory = compile_step(trainer, mesh).lower(state, spec, key).compile()
        size = memory.memory_analysis()
        return moments, size.argument_size_in_bytes + size.temp_size_in_bytes

    wide = tiny_llm.pretrained("phi3", hidden_size=128, intermediate_size=256).model
    language = Language(wide, logits_chunk=8)
    full_moments, full_bytes = cost(None, ".*")
    moments, size = cost(LoRA(rank=2, dropout=0.0), ".*lora_[ab]")
    assert moments < 0.1 * full_moments
    assert size < 0.55 * full_bytes


def test_a_mesh_trains_alike(task: Adapted, batch: dict, flat: dict) -> None:
    """One update on one device and on eight, dropout included."""
    dropped = dropping(task, 0.3)
    spec = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    losses = []
    for shape, devices in (((1, 1, 1), jax.devices()[:1]), ((2, 2, 2), None)):
        mesh = sharding.make_mesh(shape, devices)
        trainer = Trainer(experiment(dropped.task, dropped.adapters, ".*lora_[ab]"), spec)
        with jax.set_mesh(mesh):
            state = sharding.sharded(mesh, task.task, trainer.init, jax.random.key(0))
            step = compile_step(trainer, mesh)
            for _ in range(2):
                rows = {
                    k: jax.device_put(v, sharding.batch_sharding(mesh)) for k, v in batch.items()
                }
                state, metrics = step(state, rows, jax.random.key(1))
                losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    np.testing.assert_allclose(losses[:2], losses[2:], rtol=1e-4)


def test_it_is_a_config(task: Adapted) -> None:
    lora = task.adapters
    assert from_json(json.loads(dumps(lora))) == lora
    with pytest.raises(ConfigError, match="match no linear layer"):
        dataclasses.replace(lora, targets="llm/nothing").init(jax.random.key(0), {})
    with pytest.raises(ConfigError, match="rank=0 must be at least 1"):
        dataclasses.replace(lora, rank=0)


def test_adapters_are_never_ignored(tmp_path: pathlib.Path) -> None:
    saved = ["llm/a/kernel", "llm/a/lora_a", "other/lora_a"]
    with pytest.raises(CheckpointError, match="adapters would be ignored, llm/a/lora_a"):
        _check_adapters(tmp_path, saved, ["llm/a/kernel"])
    _check_adapters(tmp_path, saved, ["llm/a/kernel", "llm/a/lora_a"])
    _check_adapters(tmp_path, saved, ["vision/a/kernel"])


def test_peft_folders(task: Adapted, flat: dict, tmp_path: pathlib.Path) -> None:
    rules = llm.rules(task.task.llm)
    peft.save(tmp_path, flat, rules, task.adapters)
    names = load_file(tmp_path / peft.WEIGHTS)
    first = "base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight"
    assert names[first].shape == (4, 32)
    config = json.loads((tmp_path / peft.CONFIG).read_text())
    assert config["target_modules"] == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    expected = {path: leaf.shape for path, leaf in flat.items()}
    back = peft.load(tmp_path, rules, task.adapters, expected)
    assert back.keys() == {path for path in flat if "lora_" in path}
    for path, leaf in back.items():
        np.testing.assert_array_equal(leaf, flat[path], err_msg=path)
    with pytest.raises(
        DataError, match=r"rank and alpha are 4 and 8, .*use LoRA\(rank=4, alpha=8\)"
    ):
        peft.load(tmp_path, rules, dataclasses.replace(task.adapters, rank=2), expected)
    for kind in ({"use_dora": True}, {"alpha_pattern": {"o_proj": 16}}):
        (tmp_path / peft.CONFIG).write_text(json.dumps(config | kind))
        with pytest.raises(DataError, match=f"{next(iter(kind))} is not supported"):
            peft.load(tmp_path, rules, task.adapters, expected)
    (tmp_path / peft.CONFIG).write_text(json.dumps(config))
    del names[first]
    save_file(names, tmp_path / peft.WEIGHTS)
    with pytest.raises(DataError, match="layers of .*qkv_proj.lora_A.weight are not 0..1"):
        peft.load(tmp_path, rules, task.adapters, expected)


def test_biases_of_adapted_layers_move_with_their_kernels() -> None:
    """PEFT keeps the whole layer as its base layer."""
    model = tiny_llm.pretrained("qwen2").model
    rules = peft.with_adapters(llm.rules(model), LoRA())
    names = {path: rule.theirs for rule in rules for path in rule.paths}
    attention = "base_model.model.model.layers.{i}.self_attn.q_proj"
    block = "llm/stages_0/block"
    assert names[f"{block}/attention/query/kernel"] == f"{attention}.base_layer.weight"
    assert names[f"{block}/attention/query/bias"] == f"{attention}.base_layer.bias"
    norm = "base_model.model.model.layers.{i}.input_layernorm.weight"
    assert names[f"{block}/norm1/scale"] == norm
