"""LoRA against PEFT on M3D-LaMed (golden kind `lora`): apart, merged, gradients, layouts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from m3djax import adapters as lora_lib
from m3djax.adapters import Adapted, LoRA
from m3djax.contracts.task import Batch, apply
from m3djax.contracts.terms import Loss
from m3djax.convert import name_map, peft
from m3djax.convert.lamed import m3d_lamed
from m3djax.params import Params, flatten, unflatten
from m3djax.tasks.vision_language import VisionLanguage
from tests.parity import lamed
from tests.parity.goldens import Golden, golden_dirs

TOLERANCE = 2e-4


@dataclasses.dataclass(frozen=True)
class WithLogits(VisionLanguage):
    """The task, with logits as its only metric."""

    def loss(self, params: Params, batch: Batch, keys: jax.Array, *, train: bool) -> Loss:
        loss = super().loss(params, batch, keys, train=train)
        embeds = apply(self.llm, params["llm"], batch["token_ids"], method="embed")
        volumes = self.encode(params, batch["image"][:, None])
        embeds = self.merge_image_features(embeds, volumes, batch["token_ids"])
        hidden, _ = apply(self.llm, params["llm"], embeds, batch["attention_mask"], method="encode")
        logits = apply(self.llm, params["llm"], hidden, method="logits")
        return loss.replace(metrics={"logits": logits})


@pytest.fixture(scope="module", params=golden_dirs("lora"), ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


@pytest.fixture(scope="module")
def task(golden: Golden) -> Adapted:
    sizes, model = golden.config["lora"], lamed.task(golden)
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return Adapted(WithLogits(**fields), LoRA(sizes["r"], sizes["alpha"], dropout=0.0))


@pytest.fixture(scope="module")
def flat(golden: Golden, task: Adapted) -> dict[str, jax.Array]:
    shapes = jax.eval_shape(task.init, jax.random.key(0), lamed.batch(golden))
    expected = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    rules = peft.with_adapters(m3d_lamed(task.task), task.adapters)
    loaded = name_map.load(golden.weights, rules, expected)
    back = name_map.save(loaded, rules)
    assert back.keys() == golden.weights.keys()
    assert all(np.array_equal(back[name], golden.weights[name]) for name in back)
    return {path: jnp.asarray(leaf) for path, leaf in loaded.items()}


@pytest.fixture(scope="module")
def batch(golden: Golden) -> dict[str, jax.Array]:
    return lamed.batch(golden)


def check(golden: Golden, name: str, loss: Loss) -> None:
    golden.compare(f"logits_{name}", loss.metrics["logits"], TOLERANCE)
    golden.compare(f"loss_{name}", loss.total / loss.weight, 1e-5)


def test_apart_and_its_gradients(
    golden: Golden, task: Adapted, flat: dict[str, jax.Array], batch: dict[str, jax.Array]
) -> None:
    keys = jax.random.split(jax.random.key(0), len(batch["image"]))
    base = {k: v for k, v in flat.items() if "lora_" not in k}

    def run(adapters: dict[str, jax.Array]) -> tuple[jax.Array, Loss]:
        loss = task.loss(unflatten(base | adapters), batch, keys, train=True)
        return loss.total / loss.weight, loss

    adapters = {k: v for k, v in flat.items() if "lora_" in k}
    (_, loss), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(adapters)
    check(golden, "lora", loss)
    rules = peft.adapters(m3d_lamed(task.task), task.adapters, "default")
    golden.compare_gradient_norms(name_map.save(grads, rules))


def test_merged_and_without(
    golden: Golden, task: Adapted, flat: dict[str, jax.Array], batch: dict[str, jax.Array]
) -> None:
    merged = task.adapters.merged(unflatten(flat))
    run: Any = jax.jit(lambda params: task.task.loss(params, batch, None, train=False))
    check(golden, "merged", run(merged))
    theirs = load_file(golden.folder / "merged.safetensors")
    ours = name_map.save(flatten(merged), m3d_lamed(task.task))
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], atol=1e-6, err_msg=name)
    check(golden, "base", run(unflatten({k: v for k, v in flat.items() if "lora_" not in k})))
    assert lora_lib.A not in str(jax.tree.structure(merged))
    assert flatten(merged).keys() == {path for path in flat if "lora_" not in path}
