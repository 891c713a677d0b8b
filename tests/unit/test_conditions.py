"""Routes and contexts reach the blocks of a task's encoder, in training and in evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from data_pipelines.errors import ConfigError
from m3djax.contracts.findings import EvaluationError
from m3djax.contracts.task import loss_of
from m3djax.evaluate.loop import place
from m3djax.generate.volumes import VolumeReader
from m3djax.inputs.inputs import IMAGE, Inputs
from m3djax.mesh import sharding
from m3djax.mesh.parameter_axes import register_axes
from m3djax.models.conditions import NONE, Conditions
from m3djax.models.mlp import FeedForward
from m3djax.models.multi_head import Attention
from m3djax.models.transformer import Block, Transformer
from m3djax.params import flatten
from m3djax.tasks.vision_language import VisionLanguage
from tests import tiny

KEYS = jax.random.split(jax.random.key(5), 8)


class Experts(FeedForward):
    """Two experts, of which the route of a sample chooses one."""

    @nn.compact
    def __call__(self, x: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        assert conditions is not None and conditions.route is not None
        scales = self.param("experts", nn.initializers.normal(1.0), (2, x.shape[-1]))
        return x * scales[conditions.route][:, None]


class Crossing(Block):
    """A block whose tokens also attend to a context."""

    cross: Attention = Attention(2)

    @nn.compact
    def __call__(self, x: jax.Array, conditions: Conditions = NONE) -> jax.Array:
        assert conditions.context is not None and conditions.context_mask is not None
        mask = conditions.context_mask[:, None, None]
        x = x + self.cross(self._norm(x, "norm3"), conditions.context, mask=mask)
        return super().__call__(x, conditions)


register_axes(Experts, {"experts": (None, "embed")})
register_axes(Crossing, {"norm3/(scale|bias)": (None,)})


@dataclasses.dataclass(frozen=True)
class Guided(VisionLanguage):
    """Takes route and context of the encoder from the batch."""

    condition_fields = ("route", "context", "context_mask")

    def conditions(self, params: Any, batch: Any) -> Conditions:
        return Conditions(**{name: batch[name] for name in self.condition_fields})


def guided(unroll: int = 1) -> Guided:
    plain = tiny.vision_language()
    block = Crossing(Attention(2), Experts(), cross=Attention(2))
    vision = plain.vision.clone(transformer=Transformer(2, block, unroll=unroll))
    return Guided(vision, plain.projector, plain.llm, image_token_id=60, logits_chunk=7)


def fields(rows: int = 8) -> dict[str, np.ndarray]:
    """Routes 0, 1, 0, 1, ..., and contexts of three tokens of which the last is padding."""
    context = np.asarray(jax.random.normal(KEYS[0], (rows, 3, 6)))
    mask = np.tile([True, True, False], (rows, 1))
    return {
        "route": np.arange(rows, dtype=np.int32) % 2,
        "context": context,
        "context_mask": mask,
    }


@pytest.fixture(scope="module")
def reader() -> VolumeReader:
    """A reader of fresh parameters."""
    task = guided()
    params = jax.jit(task.init)(KEYS[1], tiny.dialogue_batch() | fields())
    reader = VolumeReader(task, Inputs().bound(IMAGE), params)
    reader.whole = params  # type: ignore[attr-defined]
    return reader


@pytest.mark.parametrize("unroll", [1, 2])
def test_gradients_reach_experts_and_cross_attention(reader: VolumeReader, unroll: int) -> None:
    """Two steps of gradient descent lower the loss."""
    task, params = guided(unroll), reader.whole  # type: ignore[attr-defined]
    batch = tiny.network(tiny.dialogue_batch()) | fields()

    @jax.jit
    def step(params: Any) -> Any:
        def mean(params: Any) -> jax.Array:
            loss = loss_of(task, params, batch, KEYS, train=True)
            return loss.total / loss.weight

        value, grads = jax.value_and_grad(mean)(params)
        return value, grads, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)

    first, grads, params = step(params)
    second, _, params = step(params)
    third, _, _ = step(params)
    assert first > second > third
    flat = flatten(grads)
    for name in ("mlp/experts", "cross/key/kernel", "cross/value/kernel"):
        assert np.abs(flat[f"vision/transformer/block/{name}"]).max() > 0, name


def test_volumes_are_read_with_their_own_conditions(reader: VolumeReader) -> None:
    batch = tiny.batch() | fields()
    tokens = np.asarray(reader.read(batch).tokens)
    routed = np.asarray(reader.read(batch | {"route": np.zeros(8, np.int32)}).tokens)
    np.testing.assert_array_equal(tokens[::2], routed[::2])
    assert np.abs(tokens[1::2] - routed[1::2]).max(axis=(1, 2)).min() > 1e-4
    padding, text = (batch["context"].copy() for _ in range(2))
    padding[:, 2] += 9
    text[:, 1] += 9
    same = reader.read(batch | {"context": padding}).tokens
    other = reader.read(batch | {"context": text}).tokens
    np.testing.assert_array_equal(tokens, same)
    assert np.abs(tokens - np.asarray(other)).max(axis=(1, 2)).min() > 1e-4


def test_a_missing_field_is_named(reader: VolumeReader) -> None:
    with pytest.raises(ConfigError, match="Guided needs the field 'route' of a volume's batch"):
        reader.read(tiny.batch())
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    with pytest.raises(EvaluationError, match="have no field 'route', which the model needs"):
        place(mesh, tiny.batch(), ("image", "route"))
