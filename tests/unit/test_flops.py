from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from m3djax.adapters import Adapted, LoRA
from m3djax.contracts.task import Task
from m3djax.mesh import sharding
from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.transformer import Block, Transformer
from m3djax.params import flatten, split, unflatten
from m3djax.runs.state import specification
from m3djax.tasks.language import Language
from m3djax.training import flops
from tests import tiny, tiny_llm


def test_a_transformer_is_counted_whole_whatever_the_loop() -> None:
    n, c, hidden, layers = 10, 8, 16, 5
    # Four projections, two products of the attention, two layers of the MLP.
    expected = layers * (4 * 2 * n * c * c + 2 * 2 * n * n * c + 2 * 2 * n * c * hidden)
    x = jnp.zeros((1, n, c))
    for options in ({}, {"unroll": 5}, {"remat": "full"}):
        model = Transformer(layers, Block(Attention(2), Mlp(hidden)), **options)
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        assert flops.count(lambda p, m=model: m.apply(p, x)[0], params) == expected


def test_a_convolution_is_counted() -> None:
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 2, 3, 5))
    conv = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert flops.count(conv, x, kernel) == 2 * (2 * 4 * 4 * 5) * (2 * 2 * 3)


def test_the_peak_of_this_machine_is_plausible() -> None:
    found = flops.peak(sharding.make_mesh((-1, 1, 1)))
    assert 1e8 < found < 1e14
    # It is measured once: stages of a quickstart that train in turn are compared with one number.
    assert flops.peak(sharding.make_mesh((2, 2, 2))) == found


def jaxpr(function, *arguments):
    return jax.make_jaxpr(function)(*arguments).jaxpr


def test_products_are_padded_to_the_matrix_unit() -> None:
    def product(b, m, k, n):
        return jaxpr(lambda x, y: x @ y, jnp.zeros((b, m, k)), jnp.zeros((b, k, n)))

    assert flops.count_jaxpr(product(1, 256, 128, 128), 128) == 2 * 256 * 128 * 128
    # Depth 32 is padded to 128; 300 rows stream through 128 columns.
    assert flops.count_jaxpr(product(3, 300, 32, 128), 128) == 3 * 2 * 300 * 128 * 128
    # One of the two sides is padded, whichever costs less: 200 x 768, not 256 x 700.
    assert flops.count_jaxpr(product(1, 200, 128, 700), 128) == 2 * 200 * 128 * 768
    assert flops.count_jaxpr(product(4, 1, 64, 64), 128) == 4 * 2 * 64 * 64
    # Less than a tile's length does not hide that the tile is loaded.
    assert flops.count_jaxpr(product(1, 8, 128, 128), 128) == 2 * 128 * 128 * 128


def test_branches_and_loops() -> None:
    x = jnp.zeros((8, 8))
    once = 2 * 8**3
    branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)  # noqa: E731
    assert flops.count(branch, x) == 2 * once
    loop = lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x)  # noqa: E731
    assert flops.count(loop, x) == once
    assert flops.count(lambda x: jax.lax.fori_loop(0, 5, lambda _, x: x @ x, x), x) == 5 * once


def test_what_nobody_uses_is_not_counted() -> None:
    assert flops.count(lambda x: (x @ x, x)[1], jnp.zeros((8, 8))) == 0


def test_kernels_and_shards_count_as_often_as_they_run() -> None:
    def kernel(x, y, out):
        out[...] = jnp.dot(x[...], y[...])

    x, y = jnp.zeros((32, 8)), jnp.zeros((8, 16))
    call = pl.pallas_call(
        kernel,
        grid=(4, 2),
        in_specs=[
            pl.BlockSpec((8, 8), lambda i, j: (i, 0)),
            pl.BlockSpec((8, 8), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((8, 8), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((32, 16), jnp.float32),
    )
    whole = 2 * 32 * 8 * 16
    assert flops.count(call, x, y) == whole
    with jax.set_mesh(sharding.make_mesh((4, 2, 1))):
        split = jax.shard_map(
            lambda x, y: x @ y,
            in_specs=(jax.P("data"), jax.P(None, "fsdp")),
            out_specs=jax.P("data", "fsdp"),
        )
        assert flops.count(split, x, y) == whole


def executed(task: Task, spec: Mapping[str, Any], trainable: str) -> int:
    """Products of loss and gradients, as JAX differentiates them."""
    shapes = jax.eval_shape(task.init, jax.random.key(0), spec)

    def loss(trained, frozen, keys):
        return task.loss(unflatten(trained | frozen), spec_values, keys, train=True).total

    spec_values = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}
    spec_values = tiny.network(spec_values)
    keys = jax.random.split(jax.random.key(0), 8)
    return flops.count(jax.value_and_grad(loss), *split(flatten(shapes), trainable), keys)


@pytest.mark.parametrize("trainable", [".*", "mae_decoder", "vision", ".*norm", "vision.*mlp"])
def test_the_backward_pass_is_what_differentiation_makes_of_it(trainable: str) -> None:
    e = tiny.experiment()
    spec = specification(e)
    work = flops.model_flops(e.task, spec, trainable)
    assert work == executed(e.task, spec, trainable)
    again = dataclasses.replace(e.task.vision.transformer, remat="full")
    task = dataclasses.replace(e.task, vision=e.task.vision.clone(transformer=again))
    assert flops.model_flops(task, spec, trainable) == work
    assert trainable != "vision" or executed(task, spec, trainable) > work


def test_frozen_weights_need_no_gradient() -> None:
    """6 FLOPs per weight and token when all is trained, 4 beside adapters."""
    task = Language(tiny_llm.pretrained().model, logits_chunk=8)
    int32 = lambda *shape: jax.ShapeDtypeStruct((8, *shape), jnp.int32)  # noqa: E731
    spec = {"token_ids": int32(16), "spans": int32(1, 2)}
    spec["attention_mask"] = jax.ShapeDtypeStruct((8, 16), jnp.bool_)
    adapted, tokens = Adapted(task, LoRA(rank=1)), 8 * 16
    logits = 2 * tokens * 32 * 264  # the loss computes them twice, and is worth them once
    for each, trainable in ((task, ".*"), (adapted, ".*lora_[ab]"), (adapted, ".*")):
        work = flops.model_flops(each, spec, trainable)
        assert work == executed(each, spec, trainable) - logits
    kernels = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)  # the products with weights
    saved = flops.model_flops(adapted, spec) - flops.model_flops(adapted, spec, ".*lora_[ab]")
    assert saved == 2 * tokens * kernels + logits


def test_data_sheets() -> None:
    assert flops.data_sheet("TPU v5 lite") == 197e12
    assert flops.data_sheet("TPU v5") == 459e12
    with pytest.raises(KeyError):
        flops.data_sheet("cpu")
