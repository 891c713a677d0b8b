"""The chunked loss against the plain one, in value, gradient and memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.errors import ConfigError
from m3djax.contracts.sown import collecting, sow
from m3djax.contracts.terms import Term
from m3djax.convert.pretrained import Pretrained
from m3djax.models.llm.decoder import Decoder
from m3djax.models.transformer import Transformer
from m3djax.tasks.next_token import IGNORE, Reduction, next_token_loss, spans_to_labels
from tests import tiny_llm


@pytest.fixture(scope="module", params=["untied", "tied"])
def tiny(request: pytest.FixtureRequest) -> Pretrained:
    return tiny_llm.pretrained(tie_word_embeddings=request.param == "tied")


@pytest.fixture(scope="module")
def labels() -> jax.Array:
    ids = jax.random.randint(jax.random.key(1), (4, 21), 0, 258)
    return spans_to_labels(ids, jnp.array([[[3, 9], [12, 21]]] * 3 + [[[0, 0], [20, 21]]]))


def hidden_of(shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.key(2), shape)


def test_value_and_gradients_are_those_of_the_plain_loss(
    tiny: Pretrained, labels: jax.Array
) -> None:
    model, params = tiny.model, tiny.params["llm"]
    z_loss = 1e-2

    def plain(params: dict, hidden: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, hidden, method="logits")[:, :-1]
        wanted = labels[:, 1:]
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        z = jnp.square(jax.nn.logsumexp(logits, axis=-1))
        return jnp.sum((entropy + z_loss * z) * (wanted != IGNORE))

    def chunked(params: dict, hidden: jax.Array) -> jax.Array:
        loss = next_token_loss(model, params, hidden, labels, logits_chunk=8, z_loss=z_loss)
        return loss.total

    hidden = hidden_of((4, 21, 32))
    with jax.default_matmul_precision("highest"):
        ours, grads = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(params, hidden)
        theirs, wanted = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(params, hidden)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), grads, wanted)


def test_spans_count_and_parts_add_up(tiny: Pretrained, labels: jax.Array) -> None:
    """Rows of very different numbers of tokens: sums over parts are the sum of the whole."""
    model, params = tiny.model, tiny.params["llm"]
    hidden = hidden_of((4, 21, 32))
    whole = next_token_loss(model, params, hidden, labels, logits_chunk=5)
    assert int(whole.weight) == 3 * (6 + 9) + 1
    parts = [
        next_token_loss(model, params, hidden[rows], labels[rows], logits_chunk=5)
        for rows in (slice(0, 3), slice(3, 4))
    ]
    np.testing.assert_allclose(sum(part.total for part in parts), whole.total, rtol=1e-6)
    assert sum(int(part.weight) for part in parts) == int(whole.weight)


@pytest.mark.parametrize("reduction", ["token", "square", "sample"])
def test_reduction_says_what_counts_alike(
    tiny: Pretrained, labels: jax.Array, reduction: Reduction
) -> None:
    """Against each row's own sum: 15, 15, 15 tokens and one."""
    model, params = tiny.model, tiny.params["llm"]
    hidden = hidden_of((4, 21, 32))
    rows = [
        next_token_loss(model, params, hidden[row : row + 1], labels[row : row + 1])
        for row in range(4)
    ]
    numbers = np.array([row.weight for row in rows])
    np.testing.assert_array_equal(numbers, [15, 15, 15, 1])
    shares = {"token": numbers, "square": np.sqrt(numbers), "sample": np.ones(4)}[reduction]
    means = np.array([row.total for row in rows]) / numbers
    whole = next_token_loss(model, params, hidden, labels, logits_chunk=5, reduction=reduction)
    np.testing.assert_allclose(whole.weight, shares.sum(), rtol=1e-6)
    np.testing.assert_allclose(whole.total, (means * shares).sum(), rtol=1e-5)


def test_logits_of_the_whole_batch_never_exist() -> None:
    """Peak of the compiled gradient: far below one float32 array (b, n, v)."""
    tiny = tiny_llm.pretrained(vocab_size=8192)
    b, n = 2, 512
    shapes = (
        jax.eval_shape(lambda: tiny.params["llm"]),
        jax.ShapeDtypeStruct((b, n, 32), jnp.float32),
        jax.ShapeDtypeStruct((b, n), jnp.int32),
    )

    def peak(logits_chunk: int) -> int:
        def loss(params: dict, hidden: jax.Array, labels: jax.Array) -> jax.Array:
            return next_token_loss(
                tiny.model, params, hidden, labels, logits_chunk=logits_chunk
            ).total

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = b * n * 8192 * 4
    assert peak(32) < 0.3 * logits
    assert peak(n) > logits


def test_only_tokens_that_count_need_the_head(tiny: Pretrained, labels: jax.Array) -> None:
    model, params = tiny.model, tiny.params["llm"]

    def total(hidden: jax.Array, counted: int) -> jax.Array:
        loss = next_token_loss(
            model, params, hidden, labels, logits_chunk=5, z_loss=1e-2, counted=counted
        )
        return loss.total / loss.weight

    hidden = hidden_of((4, 21, 32))
    whole, few = (jax.value_and_grad(total)(hidden, counted) for counted in (0, 15))
    np.testing.assert_allclose(few[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(few[1], whole[1], atol=1e-7)
    assert np.isnan(total(hidden, 14)), "the first rows have 15"


class Balanced(Decoder):
    """A decoder whose output head adds a term to the loss."""

    def logits(self, hidden: jax.Array) -> jax.Array:
        sow(self, "balance", Term(jnp.sum(hidden), jnp.float32(1)))
        return super().logits(hidden)


@pytest.mark.parametrize("chunk", [2, 64])
def test_a_head_that_sows_is_refused(tiny: Pretrained, labels: jax.Array, chunk: int) -> None:
    """Its term would be counted once for each chunk; the error says where a term may be sown."""
    fields = {n: getattr(tiny.model, n) for n in tiny.model.__dataclass_fields__ if n != "parent"}
    model = Balanced(**fields)
    hidden = hidden_of((*labels.shape, tiny.model.hidden_size))
    with collecting(), pytest.raises(ConfigError, match="output head.*Cure: .*sow in a block"):
        next_token_loss(model, tiny.params["llm"], hidden, labels, logits_chunk=chunk)


def test_stages_of_one_block_have_parameters_of_their_own(tiny: Pretrained) -> None:
    """As a config that was saved and read back has them."""
    block = tiny.model.stages[0].block
    model = tiny.model.clone(stages=(Transformer(1, block), Transformer(1, block)))
    assert model.stages[0].block is not model.stages[1].block
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    assert {"stages_0", "stages_1"} <= set(shapes["params"])
    one, two = (jax.tree.leaves(shapes["params"][f"stages_{n}"]) for n in (0, 1))
    assert len(one) == len(two) > 0
