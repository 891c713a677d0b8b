"""Contrastive losses: the ring equals the dense form, and meshes equal one device."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipelines.errors import ConfigError
from m3djax.losses.contrastive import InfoNCE, SigmoidPairs
from m3djax.losses.sigmoid import dense_sigmoid_loss, ring_sigmoid_loss
from m3djax.mesh import sharding

MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)]
ROWS, WIDTH = 48, 20
GRADIENTS = (0, 1, 4, 5)  # images, texts, scale, bias
SMALL = (np.ones((2, 2), np.float32),) * 2 + (np.arange(2), np.ones(2, bool))


def unit(rng: np.random.Generator, rows: int = ROWS) -> np.ndarray:
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def inputs() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    ids = np.arange(ROWS, dtype=np.int32)
    ids[[1, 17, 40]] = ids[5]  # one caption four times, on several devices
    ids[9] = ids[8]
    valid = np.ones(ROWS, bool)
    valid[[3, 40]] = False  # no text, one of them with an id that others have
    return unit(rng), unit(rng), ids, valid


def place(mesh: jax.sharding.Mesh, arrays: Any) -> Any:
    return jax.device_put(arrays, NamedSharding(mesh, P(("data", "fsdp"))))


def close(here: Any, there: Any) -> None:
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(np.max(np.abs(b))))


@pytest.mark.parametrize("block", [1024, 2])
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_the_ring_equals_the_dense_form(
    shape: tuple[int, int, int], block: int, inputs: tuple[np.ndarray, ...]
) -> None:
    numbers = (jnp.float32(7.0), jnp.float32(-3.0))
    wanted = jax.jit(jax.value_and_grad(dense_sigmoid_loss, GRADIENTS))(*inputs, *numbers)
    mesh = sharding.make_mesh(shape)
    with jax.set_mesh(mesh):
        ring = functools.partial(ring_sigmoid_loss, block=block)
        compiled = jax.jit(jax.value_and_grad(ring, GRADIENTS))
        close(compiled(*place(mesh, inputs), *numbers), wanted)


def test_the_ring_without_a_mesh_and_scaled_gradients(inputs: tuple[np.ndarray, ...]) -> None:
    """A cotangent that is not 1 reaches every gradient."""
    args = (*inputs, jnp.float32(7.0), jnp.float32(-3.0))
    dense = jax.jit(jax.grad(lambda *a: 0.3 * dense_sigmoid_loss(*a), GRADIENTS))
    ring = jax.jit(jax.grad(lambda *a: 0.3 * ring_sigmoid_loss(*a), GRADIENTS))
    close(ring(*args), dense(*args))


def test_the_ring_holds_no_square_of_logits() -> None:
    """Compiled temporaries grow with the rows of a device, not with their square."""
    mesh = sharding.make_mesh((4, 2, 1))

    def peak(form: str, rows: int) -> int:
        where = NamedSharding(mesh, P(("data", "fsdp")))
        x = jax.ShapeDtypeStruct((rows, 32), jnp.float32, sharding=where)
        ids = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=where)
        module = SigmoidPairs(form=form, block=64)
        params = module.init(jax.random.key(0), *SMALL)

        def loss(x: jax.Array, y: jax.Array, ids: jax.Array) -> jax.Array:
            return module.apply(params, x, y, ids, jnp.ones(rows, bool)).total

        with jax.set_mesh(mesh):
            step = jax.jit(jax.value_and_grad(loss, (0, 1)))
            return step.lower(x, x, ids).compile().memory_analysis().temp_size_in_bytes

    ring, dense = (peak(form, 4096) for form in ("ring", "dense"))
    assert dense > 4096 * 512 * 4 > 4 * ring
    assert peak("ring", 8192) < 2.5 * ring < 2.5 * dense


@pytest.mark.parametrize(
    "objective",
    [InfoNCE(), InfoNCE(released=True), SigmoidPairs()],
    ids=["infonce", "released", "sigmoid"],
)
@pytest.mark.parametrize("shape", [(2, 4, 1), (2, 2, 2)], ids=str)
def test_objectives_on_a_mesh(
    objective: Any, shape: tuple[int, int, int], inputs: tuple[np.ndarray, ...]
) -> None:
    """Value, metrics and all gradients equal those of one device."""
    params = jax.jit(objective.init)(jax.random.key(0), *inputs)

    def loss(params: Any, *args: jax.Array) -> tuple[jax.Array, Any]:
        result = objective.apply(params, *args)
        return result.total, result

    grad = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    wanted = jax.jit(grad)(params, *inputs)
    mesh = sharding.make_mesh(shape)
    with jax.set_mesh(mesh):
        close(jax.jit(grad)(params, *place(mesh, inputs)), wanted)


def test_no_device_holds_all_logits() -> None:
    """InfoNCE's logits are split over rows, forward and backward."""
    mesh, rows = sharding.make_mesh((4, 2, 1)), 1024
    where = NamedSharding(mesh, P(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((rows, 16), jnp.float32, sharding=where)
    ids = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=where)
    params = InfoNCE().init(jax.random.key(0), *SMALL)

    def loss(x: jax.Array, y: jax.Array, ids: jax.Array) -> jax.Array:
        return InfoNCE().apply(params, x, y, ids, jnp.ones(rows, bool)).total

    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss, (0, 1)))
        text = step.lower(x, x, ids).compile().as_text()
    assert f"f32[{rows // 8},{rows}]" in text
    assert f"[{rows},{rows}]" not in text


def test_a_ring_needs_equal_parts() -> None:
    with (
        jax.set_mesh(sharding.make_mesh((8, 1, 1))),
        pytest.raises(ConfigError, match="a batch of 12 cannot be split over 8 devices"),
    ):
        x, ids = jnp.ones((12, 2)), jnp.arange(12)
        ring_sigmoid_loss(x, x, ids, ids > -1, jnp.float32(1), jnp.float32(0))


def test_info_nce_is_the_mean_of_two_cross_entropies(inputs: tuple[np.ndarray, ...]) -> None:
    """With all captions different, and with equal ones, against the definition by optax."""
    images, texts, ids, _ = inputs
    for text_id in (np.arange(ROWS), ids):
        params = InfoNCE().init(jax.random.key(0), *SMALL)
        result = InfoNCE().apply(params, images, texts, text_id, np.ones(ROWS, bool))
        logits = images @ texts.T / 0.07
        same = (text_id[:, None] == text_id[None]).astype(np.float32)
        target = same / same.sum(1, keepdims=True)
        entropy = [optax.softmax_cross_entropy(side, target).sum() for side in (logits, logits.T)]
        np.testing.assert_allclose(result.total, sum(entropy) / 2, rtol=1e-5)
        right = np.take_along_axis(same, logits.argmax(1)[:, None], 1).sum()
        assert result.metrics["image_to_text"].sum == right
        assert result.weight == ROWS


@pytest.mark.parametrize("objective", [InfoNCE(), SigmoidPairs()], ids=["infonce", "sigmoid"])
def test_rows_without_text_do_not_count(objective: Any, inputs: tuple[np.ndarray, ...]) -> None:
    """Their loss is that of the batch without them, and they get no gradient."""
    params = jax.jit(objective.init)(jax.random.key(0), *inputs)

    def loss(images: jax.Array, *rest: jax.Array) -> tuple[jax.Array, Any]:
        result = objective.apply(params, images, *rest)
        return result.total, result

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, with_them), gradient = step(*inputs)
    valid = inputs[-1]
    (_, without), _ = step(*(array[valid] for array in inputs))
    close(with_them, without)
    assert float(with_them.weight) == valid.sum() < ROWS
    assert not np.any(np.asarray(gradient)[~valid]) and np.all(np.any(gradient[valid], axis=1))
    nobody, _ = step(*inputs[:3], np.zeros(ROWS, bool))
    assert float(nobody[0]) == 0 and float(nobody[1].weight) == 1


def test_equal_captions_cost_nothing_for_being_confused() -> None:
    """Two studies with one caption: perfect features reach the entropy of the target."""
    features = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    loss = {}
    for name, ids in (("aware", np.array([7, 7, 1, 2])), ("blind", np.arange(4))):

        def info_nce(images: jax.Array, ids: np.ndarray = ids) -> tuple[jax.Array, jax.Array]:
            params = {"params": {"log_scale": jnp.log(jnp.float32(90.0))}}
            result = InfoNCE().apply(params, images, features, ids, ids > -1)
            return result.total, result.metrics["image_to_text"].sum

        step = jax.jit(jax.value_and_grad(info_nce, has_aux=True))
        (total, hits), gradient = step(features)
        loss[name] = (float(total), float(jnp.max(jnp.abs(gradient))))
        assert hits == 4
    np.testing.assert_allclose(loss["aware"][0], 2 * np.log(2), rtol=1e-5)
    assert loss["aware"][1] < 1e-3
    params = {"params": {"log_scale": jnp.float32(3.0), "bias": jnp.float32(-5.0)}}
    pairs = [
        float(SigmoidPairs().apply(params, features, features, ids, ids > -1).total)
        for ids in (np.array([7, 7, 1, 2]), np.arange(4))
    ]
    assert pairs[0] < 1 < 15 < pairs[1]


def test_the_scale_is_bounded_and_comes_back() -> None:
    rng = np.random.default_rng(1)
    images, ids = unit(rng, 8), np.arange(8)

    def loss(value: float, texts: np.ndarray) -> tuple[jax.Array, jax.Array]:
        module = InfoNCE(max_scale=5.0)
        result = module.apply({"params": {"log_scale": value}}, images, texts, ids, ids > -1)
        return result.total, result.metrics["scale"].value

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, _), inside = step(jnp.float32(1.6), images)
    assert total > 0.1 and inside < -0.1
    (_, scale), gradient = step(jnp.float32(9.0), images)  # a perfect match wants a larger scale
    np.testing.assert_allclose(scale, 5, rtol=1e-5)
    assert gradient == 0
    (_, scale), gradient = step(jnp.float32(9.0), -images)  # the opposite wants a smaller one
    np.testing.assert_allclose(scale, 5, rtol=1e-5)
    assert gradient > 1


def test_released_scale_is_raw() -> None:
    params = InfoNCE(released=True).init(jax.random.key(0), *SMALL)
    np.testing.assert_allclose(params["params"]["scale"], np.log(1 / 0.07), rtol=1e-6)
    module = InfoNCE(released=True)
    assert float(module.apply({"params": {"scale": 300.0}}, method="factor")) == 300
