"""LoRA against PEFT on M3D-LaMed (golden kind `lora`): apart, merged, gradients, layouts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from m3djax import lora as lora_lib
from m3djax.convert import llm, name_map, peft, pretrained
from m3djax.lora import LoRA
from m3djax.models.llm.decoder import Decoder
from m3djax.params import Params, flatten, unflatten
from m3djax.tasks.base import Batch, Loss, Task, apply
from m3djax.tasks.next_token import next_token_loss
from tests.parity import lamed
from tests.parity.goldens import Golden, golden_dirs

TOLERANCE = 2e-4


@dataclasses.dataclass(frozen=True)
class Embedded(Task):
    """The loss of embedded tokens; logits are its only metric."""

    llm: Decoder

    def init(self, rng: jax.Array, batch: Batch) -> Params:
        return {"llm": self.llm.init(rng, jnp.zeros((1, 1), jnp.int32))["params"]}

    def loss(self, params: Params, batch: Batch, keys: jax.Array, *, train: bool) -> Loss:
        encode = {"method": "encode"}
        hidden, _ = apply(self.llm, params["llm"], batch["embeds"], batch["valid"], **encode)
        loss = next_token_loss(self.llm, params["llm"], hidden, batch["labels"], chunk=7)
        logits = apply(self.llm, params["llm"], hidden, method="logits")
        return loss.replace(metrics={"logits": logits})


@pytest.fixture(scope="module", params=golden_dirs("lora"), ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


@pytest.fixture(scope="module")
def task(golden: Golden) -> LoRA:
    sizes = golden.config["lora"]
    return LoRA(Embedded(lamed.decoder(golden)), sizes["r"], sizes["alpha"], dropout=0.0)


@pytest.fixture(scope="module")
def flat(golden: Golden, task: LoRA) -> dict[str, jax.Array]:
    shapes = jax.eval_shape(task.init, jax.random.key(0), {})
    expected = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    outside = (peft.PREFIX + lamed.VISION, peft.PREFIX + lamed.PROJECTOR)
    weights = {k: v for k, v in golden.weights.items() if not k.startswith(outside)}
    rules = peft.with_adapters(llm.rules(task.task.llm), task)
    loaded = name_map.load(weights, rules, expected)
    back = name_map.save(loaded, rules)
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], weights[name]) for name in weights)
    return {path: jnp.asarray(leaf) for path, leaf in loaded.items()}


@pytest.fixture(scope="module")
def batch(golden: Golden, task: LoRA, flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
    weights = {k.removeprefix(peft.PREFIX): v for k, v in golden.weights.items()}
    tower = {k: v for k, v in weights.items() if k.startswith(lamed.VISION)}
    images = jnp.moveaxis(golden.io["images"], 1, -1)
    shapes = jax.eval_shape(lamed.tower(golden).init, jax.random.key(0), images)["params"]
    expected = {path: leaf.shape for path, leaf in flatten({"vision": shapes}).items()}
    vision = unflatten(name_map.load(tower, lamed.TOWER, expected))["vision"]
    params = {"params": unflatten(flat)["llm"]}
    tokens = task.task.llm.apply(params, golden.given("input_ids"), method="embed")
    return {
        "embeds": lamed.inputs_embeds(golden, tokens, vision, lamed.projector_of(weights)),
        "valid": jnp.asarray(golden.given("attention_mask") > 0),
        "labels": jnp.asarray(golden.given("labels")),
    }


def check(golden: Golden, name: str, loss: Loss) -> None:
    golden.compare(f"logits_{name}", loss.metrics["logits"], TOLERANCE)
    golden.compare(f"loss_{name}", loss.total / loss.weight, 1e-5)


def test_apart_and_its_gradients(
    golden: Golden, task: LoRA, flat: dict[str, jax.Array], batch: dict[str, jax.Array]
) -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    base = {k: v for k, v in flat.items() if "lora_" not in k}

    def run(adapters: dict[str, jax.Array]) -> tuple[jax.Array, Loss]:
        loss = task.loss(unflatten(base | adapters), batch, keys, train=True)
        return loss.total / loss.weight, loss

    adapters = {k: v for k, v in flat.items() if "lora_" in k}
    (_, loss), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(adapters)
    check(golden, "lora", loss)
    rules = peft.adapters(llm.rules(task.task.llm), task, "default")
    golden.compare_gradient_norms(name_map.save(grads, rules))


def test_merged_and_without(
    golden: Golden, task: LoRA, flat: dict[str, jax.Array], batch: dict[str, jax.Array]
) -> None:
    inner, merged = task.evaluated(unflatten(flat))
    run: Any = jax.jit(lambda params: inner.loss(params, batch, None, train=False))
    check(golden, "merged", run(merged))
    theirs = load_file(golden.folder / "merged.safetensors")
    ours = name_map.save(flatten(merged), llm.rules(task.task.llm))
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], atol=1e-6, err_msg=name)
    check(golden, "base", run(unflatten({k: v for k, v in flat.items() if "lora_" not in k})))
    assert lora_lib.A not in str(jax.tree.structure(merged))
    assert pretrained.shapes(task.task.llm).keys() == flatten(merged).keys()
