"""Attention, MLPs, stages, and the terms that blocks add to the loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from m3djax.adapters import _drop
from m3djax.contracts.sown import merged, sow
from m3djax.contracts.task import loss_of
from m3djax.contracts.terms import Term
from m3djax.mesh import sharding
from m3djax.mesh.parameter_axes import register_axes
from m3djax.models.conditions import NONE, Conditions
from m3djax.models.mlp import FeedForward, Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.positions import LearnedPositions
from m3djax.models.transformer import Block, Stages, Transformer
from m3djax.models.vit import ViT3D
from m3djax.params import flatten, unflatten
from m3djax.runs.state import trainer_of
from m3djax.tasks.mae import MAE
from tests import tiny

SCALE = 0.25
KEYS = jax.random.split(jax.random.key(3), 8)


class Balanced(FeedForward):
    """Sows the mean square of a trained gate that nothing else depends on."""

    inner: FeedForward = Mlp(32)

    @nn.compact
    def __call__(self, x: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        gate = self.param("gate", nn.initializers.constant(2.0), (x.shape[-1],))
        tokens = jnp.float32(x.shape[0] * x.shape[1])
        sow(self, "balance", Term(tokens * jnp.mean(jnp.square(gate)), tokens, SCALE))
        return self.inner(x, conditions)


register_axes(Balanced, {"gate": (None,)})


class Routed(FeedForward):
    """Adds the route of the sample."""

    def __call__(self, x: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        assert conditions is not None
        return x + conditions.route[:, None, None]


class InSlice(Transformer):
    """Attends within slices: the slices of all samples are the rows of the batch."""

    def __call__(self, x: jax.Array, conditions: Conditions = NONE, *, hidden: bool = False) -> Any:
        assert conditions.grid is not None
        folded = x.reshape(len(x) * conditions.grid[0], -1, x.shape[-1])
        out, layers = super().__call__(folded, conditions, hidden=hidden)
        return out.reshape(x.shape), None if layers is None else layers.reshape(-1, *x.shape)


def reference(params: dict, x: Any, context: Any, mask: Any, heads: int, shared: int) -> Any:
    """Attention in einsums, query heads h and key heads h // (heads / shared)."""

    def project(name: str, tokens: Any, count: int) -> Any:
        out = tokens @ params[name]["kernel"] + params[name]["bias"]
        return out.reshape(*out.shape[:2], count, -1)

    query, key, value = (
        project(*args)
        for args in (("query", x, heads), ("key", context, shared), ("value", context, shared))
    )
    key, value = (jnp.repeat(part, heads // shared, axis=2) for part in (key, value))
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key) / np.sqrt(query.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))
    out = jnp.einsum("bhnm,bmhd->bnhd", weights, value).reshape(*x.shape[:2], -1)
    return out @ params["out"]["kernel"] + params["out"]["bias"]


def test_attention_looks_at_a_context() -> None:
    x, context = (
        jax.random.normal(KEYS[i], shape) for i, shape in ((0, (2, 3, 8)), (1, (2, 5, 6)))
    )
    mask = jnp.arange(5)[None, None, None] < jnp.array([3, 5])[:, None, None, None]
    attention = Attention(4, num_key_value_heads=2, head_dim=4)
    variables = attention.init(KEYS[2], x, context, mask=mask)
    out = attention.apply(variables, x, context, mask=mask)
    wanted = reference(variables["params"], x, context, mask, 4, 2)
    np.testing.assert_allclose(out, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="fused"):
        attention.clone(fused=True).init(KEYS[2], x, context)
    with pytest.raises(ValueError, match="num_key_value_heads=3 does not divide num_heads=4"):
        attention.clone(num_key_value_heads=3).init(KEYS[2], x)


@pytest.mark.parametrize("name", ["gelu", "gelu_pytorch_tanh", "quick_gelu"])
def test_activations(name: Any) -> None:
    x = jnp.linspace(-3, 3, 20).reshape(1, 5, 4)
    mlp = Mlp(6, name)
    params = mlp.init(KEYS[0], x)["params"]
    h = np.asarray(x @ params["fc1"]["kernel"], np.float64)
    middle = {
        "gelu": h * 0.5 * (1 + jax.scipy.special.erf(h / np.sqrt(2))),
        "gelu_pytorch_tanh": h * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))),
        "quick_gelu": h / (1 + np.exp(-1.702 * h)),
    }[name]
    wanted = middle @ params["fc2"]["kernel"]
    np.testing.assert_allclose(mlp.apply({"params": params}, x), wanted, atol=1e-5)


def test_an_mlp_sees_the_route() -> None:
    model, x = Transformer(3, Block(Attention(2), Routed())), jnp.ones((2, 4, 8))
    variables = model.init(KEYS[0], x, Conditions(route=jnp.zeros(2)))
    none, some = (
        model.apply(variables, x, Conditions(route=jnp.array(route)))[0]
        for route in ([0.0, 0.0], [0.0, 1.0])
    )
    np.testing.assert_array_equal(none[0], some[0])
    assert np.abs(none[1] - some[1]).min() > 0.1


def vit(transformer: Any) -> ViT3D:
    return ViT3D((2, 4, 4), 12, transformer, LearnedPositions((2, 2, 3)))


def test_stages_are_one_transformer_cut_in_two() -> None:
    """Their paths are new ones below `stages_N`; a single transformer keeps its own."""
    images, block = jax.random.normal(KEYS[0], (2, 4, 8, 12, 1)), Block(Attention(2), Mlp(24))
    whole, parts = (
        vit(Transformer(3, block)),
        vit(Stages((Transformer(1, block), Transformer(2, block)))),
    )
    flat = flatten(whole.init(KEYS[1], images)["params"])
    cut = {}
    for path, leaf in flat.items():
        head, _, tail = path.partition("transformer/")
        first = {f"transformer/stages_0/{tail}": leaf[:1], f"transformer/stages_1/{tail}": leaf[1:]}
        cut |= first if tail and not head else {path: leaf}
    fresh = jax.eval_shape(parts.init, KEYS[1], images)["params"]
    assert {k: v.shape for k, v in flatten(fresh).items()} == {k: v.shape for k, v in cut.items()}
    assert parts.transformer.num_layers == 3
    one = whole.apply({"params": unflatten(flat)}, images, hidden=(0, 1, 2))
    two = parts.apply({"params": unflatten(cut)}, images, hidden=(0, 1, 2))
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_a_stage_may_stay_within_slices() -> None:
    images, block = jax.random.normal(KEYS[0], (2, 4, 8, 12, 1)), Block(Attention(2), Mlp(24))
    model = vit(Stages((InSlice(2, block),)))
    variables = model.init(KEYS[1], images)
    before = model.apply(variables, images).tokens
    after = model.apply(variables, images.at[:, 2:].add(1)).tokens
    np.testing.assert_allclose(before[:, :6], after[:, :6], atol=1e-6)  # the slices above
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 0.01


def test_dropout_of_folded_rows_is_of_the_sample() -> None:
    """Row i belongs to sample i // k, so a sample keeps its mask wherever it stands."""
    x, salt = jnp.ones((24, 5, 16)), jnp.uint32(7)
    dropped = _drop(x, 0.5, KEYS, salt)
    assert 0.4 < float(jnp.mean(dropped > 0)) < 0.6
    moved = _drop(x, 0.5, KEYS[::-1], salt)
    folds = [part.reshape(8, 3, 5, 16) for part in (dropped, moved)]
    np.testing.assert_array_equal(folds[0], folds[1][::-1])
    assert len({row.tobytes() for row in np.asarray(dropped)}) == 24  # slices differ


def balanced(where: str, remat: Any) -> Any:
    """A task whose encoder or language model has `Balanced` MLPs, in two layers of width C."""
    if where == "llm":
        task = tiny.vision_language()
        stage = task.llm.stages[0]
        block = stage.block.clone(mlp=Balanced(stage.block.mlp))
        stages = (stage.clone(block=block, remat=remat),)
        return dataclasses.replace(task, llm=task.llm.clone(stages=stages))
    task = tiny.mae()
    stack = task.vision.transformer
    stack = stack.clone(block=stack.block.clone(mlp=Balanced()), remat=remat)
    return dataclasses.replace(task, vision=task.vision.clone(transformer=stack))


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("where", ["vision", "llm"])
def test_sown_terms_reach_the_loss_and_the_gradients(where: str, remat: str) -> None:
    task = balanced(where, remat)
    batch = tiny.dialogue_batch() if where == "llm" else tiny.batch()

    def total(params: Any) -> Any:
        loss = loss_of(task, params, batch, KEYS, train=True)
        return loss.total / loss.weight, loss

    params = jax.jit(task.init)(KEYS[0], batch)
    (value, loss), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    np.testing.assert_allclose(loss.terms["balance"].value, SCALE * 2.0**2, rtol=1e-6)
    np.testing.assert_allclose(value, sum(term.value for term in loss.terms.values()), rtol=1e-6)
    (gate,) = (leaf for path, leaf in flatten(grads).items() if path.endswith("mlp/gate"))
    # The mean over two layers and all channels of a square.
    np.testing.assert_allclose(gate, SCALE * 2 * 2.0 / gate.size, rtol=1e-5)
    assert gate.shape[0] == 2
    # The task alone knows nothing of it.
    plain = jax.eval_shape(lambda p: task.loss(p, batch, KEYS, train=True), params)
    assert "balance" not in plain.terms


@dataclasses.dataclass(frozen=True)
class Counted(MAE):
    """Says the weights of both terms: 24 of 32 patches are hidden, the class token is visible."""

    def weights(self, batch: Any) -> dict[str, jax.Array]:
        rows = jnp.float32(len(batch["image"]))
        return {"reconstruction": 24 * rows, "balance": 9 * rows}


def test_sown_terms_are_trained_in_parts_of_a_batch() -> None:
    task = balanced("vision", "none")
    counted = Counted(task.vision, task.mae_decoder)
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    config = tiny.experiment(task=counted, gradient_accumulation_steps=2)
    state, (metrics,) = tiny.updates(config, mesh, steps=1)
    np.testing.assert_allclose(metrics["loss/balance"], SCALE * 2.0**2, rtol=1e-6)
    both = metrics["loss/balance"] + metrics["loss/reconstruction"]
    np.testing.assert_allclose(metrics["loss"], both, rtol=1e-6)
    gate = state.trainable["vision/transformer/block/mlp/gate"]
    np.testing.assert_allclose(gate, 2.0 - 1e-2, atol=1e-4)  # one step of Adam downhill


def test_sown_terms_without_a_weight_are_not_accumulated() -> None:
    config = tiny.experiment(task=balanced("vision", "none"), gradient_accumulation_steps=2)
    trainer = trainer_of(config)
    key = jax.random.key(0)
    state = jax.eval_shape(trainer.init, key)
    with pytest.raises(ConfigError, match="does not tell the weight of balance"):
        jax.eval_shape(trainer.step, state, tiny.batch(), key)


def test_what_is_sown_by_hand_or_with_two_scales_is_an_error() -> None:
    term = Term(jnp.ones(()), jnp.ones(()))
    with pytest.raises(ConfigError, match="balance in the collection 'terms' is no term"):
        merged([{"block": {"balance": (jnp.ones(()),)}}])
    other = dataclasses.replace(term, scale=2.0)
    with pytest.raises(ConfigError, match="balance is sown with two scales"):
        merged([{"a": {"balance": (term,)}}, {"b": {"balance": (other,)}}])
    stacked = Term(jnp.array([1.0, 3.0]), jnp.array([4.0, 4.0]))
    both = merged([{"a": {"balance": (term,)}}, {"block": {"balance": (stacked,)}}])["balance"]
    assert (float(both.sum), float(both.weight)) == (pytest.approx(5 / 3), 3.0)
