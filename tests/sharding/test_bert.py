"""A text encoder with its masked-language head is the same on any mesh of 8 devices."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m3djax.mesh import sharding
from m3djax.models.bert import Bert, MaskedLanguageHead, PostNormBlock, TextEmbeddings
from m3djax.models.mlp import Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.transformer import Transformer
from m3djax.params import flatten, unflatten

MESHES = [(2, 2, 2), (1, 8, 1)]
MODEL = Bert(
    TextEmbeddings(vocab_size=64, hidden_size=16, max_length=12),
    Transformer(2, PostNormBlock(Attention(4), Mlp(32))),
    pooler=True,
)
HEAD = MaskedLanguageHead(64)
PARTS = {"text": MODEL, "mlm_head": HEAD}
IDS = np.random.default_rng(0).integers(1, 64, (8, 12))
IDS[::2, 9:] = 0


def init(rng: jax.Array) -> dict[str, jax.Array]:
    text, head = jax.random.split(rng)
    tokens, table = jnp.zeros((1, 2, 16)), jnp.zeros((64, 16))
    return flatten(
        {
            "text": MODEL.init(text, IDS)["params"],
            "mlm_head": HEAD.init(head, tokens, table)["params"],
        }
    )


def loss(flat: dict[str, jax.Array], ids: jax.Array) -> jax.Array:
    params = unflatten(flat)
    features = MODEL.apply({"params": params["text"]}, ids)
    table = params["text"]["embeddings"]["words"]["table"]
    logits, _ = HEAD.apply({"params": params["mlm_head"]}, features.tokens, table)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
    return (entropy * features.mask).sum() / features.mask.sum() + jnp.square(
        features.pooled
    ).mean()


def run(mesh: jax.sharding.Mesh) -> tuple[jax.Array, dict[str, jax.Array]]:
    params = sharding.sharded(mesh, PARTS, init, jax.random.key(0))
    places = jax.tree.map(lambda leaf: leaf.sharding, params)
    with jax.set_mesh(mesh):
        ids = jax.device_put(IDS, sharding.batch_sharding(mesh))
        step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, places))
        value, grads = step(params, ids)
    return value, grads


@pytest.fixture(scope="module")
def alone() -> tuple[jax.Array, dict[str, jax.Array]]:
    return run(sharding.make_mesh((1, 1, 1), jax.devices()[:1]))


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_loss_and_gradients_equal_those_of_one_device(
    shape: tuple[int, int, int],
    alone: tuple[jax.Array, dict[str, jax.Array]],
    capfd: pytest.CaptureFixture,
) -> None:
    value, grads = run(sharding.make_mesh(shape))
    np.testing.assert_allclose(value, alone[0], rtol=1e-6)
    for path, grad in grads.items():
        np.testing.assert_allclose(grad, alone[1][path], atol=1e-6, err_msg=path)
    assert "rematerialization" not in capfd.readouterr().err


def test_words_are_split_over_fsdp_and_tensor() -> None:
    mesh = sharding.make_mesh((2, 2, 2))
    shapes = jax.eval_shape(init, jax.random.key(0))
    own = partial(HEAD.init, jax.random.key(0), jnp.zeros((1, 2, 16)))
    shapes |= flatten({"mlm_head": jax.eval_shape(own)["params"]})
    specs = {
        path: sharding.parameter_spec(path, x.shape, mesh, PARTS) for path, x in shapes.items()
    }
    words = jax.P(("fsdp", "tensor"), None)
    assert specs["text/embeddings/words/table"] == specs["mlm_head/decoder/table"] == words
    assert specs["text/embeddings/positions/table"] == jax.P(None, None)
    assert specs["mlm_head/vocabulary_bias"] == jax.P(("fsdp", "tensor"))
