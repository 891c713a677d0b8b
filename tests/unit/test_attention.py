"""All ways to compute attention are one function, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3djax.mesh import sharding
from m3djax.models.attention import choose, dot_product_attention

# (samples, queries, keys, heads, heads of keys, width of a head)
CASES = {
    "odd": (1, 2049, 2049, 1, 1, 4),
    "grouped": (2, 130, 130, 4, 2, 16),
    "one key head": (1, 70, 200, 4, 1, 8),
}
# (mask, causal), chosen so that everything occurs and little is compiled
OPTIONS = {
    "odd": [("none", False), ("keys", True)],
    "grouped": [("none", True), ("keys", False), ("full", False), ("full", True)],
    "one key head": [("none", False), ("keys", False)],
}


def reference(query, key, value, mask, causal):
    """The textbook in float64 numpy."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    key, value = (np.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    scores = np.einsum("bnhd,bmhd->bhnm", query, key) / np.sqrt(query.shape[-1])
    allowed = np.ones(scores.shape, bool) if mask is None else np.broadcast_to(mask, scores.shape)
    allowed = np.tril(allowed) if causal else allowed
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * allowed
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhnm,bmhd->bnhd", weights, value), weights


def reference_gradients(query, key, value, mask, causal, d_out):
    """Gradients of sum(attention * d_out), written out by hand."""
    out, weights = reference(query, key, value, mask, causal)
    groups, scale = query.shape[2] // key.shape[2], query.shape[-1] ** -0.5
    many_keys, many_values = (
        np.repeat(np.asarray(x, np.float64), groups, axis=2) for x in (key, value)
    )
    d_weights = np.einsum("bnhd,bmhd->bhnm", d_out, many_values)
    delta = np.swapaxes(np.sum(out * d_out, -1, keepdims=True), 1, 2)
    d_scores = weights * (d_weights - delta) * scale
    d_query = np.einsum("bhnm,bmhd->bnhd", d_scores, many_keys)
    d_key = np.einsum("bhnm,bnhd->bmhd", d_scores, query)
    d_value = np.einsum("bhnm,bnhd->bmhd", weights, d_out)
    shape = (*key.shape[:3], groups, key.shape[3])
    return d_query, d_key.reshape(shape).sum(3), d_value.reshape(shape).sum(3)


def arrays(case, dtype=np.float32):
    b, n, m, h, k, d = case
    rng = np.random.default_rng(0)
    shapes = ((b, n, h, d), (b, m, k, d), (b, m, k, d), (b, n, h, d))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def mask_of(kind, case):
    b, n, m, *_ = case
    if kind == "none":
        return None
    mask = np.random.default_rng(1).random((b, 1, n if kind == "full" else 1, m)) < 0.7
    mask[..., 0] = True  # every query sees a key, also under a causal mask
    return jnp.asarray(mask)


@pytest.mark.parametrize("implementation", ["xla", "blocked", "splash"])
@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradient_equal_the_textbook(name: str, implementation: str) -> None:
    case = CASES[name]
    *inputs, d_out = arrays(case)
    for kind, causal in OPTIONS[name]:
        if implementation == "splash" and kind == "full":
            continue
        mask = mask_of(kind, case)

        def function(*inputs, mask=mask, causal=causal):
            return dot_product_attention(
                *inputs, mask, causal=causal, implementation=implementation
            )

        out, pull = jax.vjp(jax.jit(function), *inputs)
        wanted, _ = reference(*inputs, mask, causal)
        np.testing.assert_allclose(out, wanted, atol=5e-6, err_msg=f"{kind} {causal}")
        gradients = reference_gradients(*inputs, mask, causal, d_out)
        for ours, theirs in zip(pull(d_out), gradients, strict=True):
            scale = max(1.0, np.abs(theirs).max())
            np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "blocked", "splash"])
def test_a_blind_query_disturbs_nobody(implementation: str) -> None:
    """Left padding: the first queries see no key at all."""
    case = (1, 40, 40, 2, 2, 8)
    *inputs, d_out = arrays(case)
    mask = jnp.arange(40)[None, None, None] >= 5
    out, pull = jax.vjp(
        lambda *x: dot_product_attention(*x, mask, causal=True, implementation=implementation),
        *inputs,
    )
    assert np.isfinite(out).all()
    rest = [x[:, 5:] for x in inputs]
    wanted, _ = reference(*rest, None, True)
    np.testing.assert_allclose(out[:, 5:], wanted, atol=5e-6)
    gradients = reference_gradients(*rest, None, True, d_out[:, 5:])
    for ours, theirs in zip(pull(d_out.at[:, :5].set(0)), gradients, strict=True):
        np.testing.assert_allclose(ours[:, 5:], theirs, atol=1e-5)
        np.testing.assert_array_equal(ours[:, :5], 0)


@pytest.mark.parametrize("implementation", ["xla", "blocked", "splash"])
def test_bfloat16_keeps_its_dtype_and_a_float32_softmax(implementation: str) -> None:
    *inputs, _ = arrays(CASES["grouped"], jnp.bfloat16)
    out = dot_product_attention(*inputs, implementation=implementation)
    assert out.dtype == jnp.bfloat16
    wanted, _ = reference(*inputs, None, False)
    np.testing.assert_allclose(np.asarray(out, np.float32), wanted, atol=0.02)


@pytest.mark.parametrize("implementation", ["blocked", "splash"])
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 1, 8)], ids=str)
def test_a_mesh_changes_nothing_and_moves_nothing(
    shape: tuple[int, int, int], implementation: str
) -> None:
    case = (4, 130, 130, 8, 4, 8)  # 4 heads of keys cannot be split over 8
    *inputs, _ = arrays(case)
    mask = mask_of("keys", case)
    mesh = sharding.make_mesh(shape)

    def function(*inputs):
        inputs = [sharding.constrain(x, ("batch", None, "heads", None)) for x in inputs]
        return dot_product_attention(*inputs, mask, implementation=implementation)

    with jax.set_mesh(mesh):
        where = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None, "tensor"))
        placed = jax.device_put(inputs[0], where)
        compiled = jax.jit(function, out_shardings=where).lower(placed, *inputs[1:]).compile()
        out = compiled(placed, *inputs[1:])
    np.testing.assert_allclose(out, reference(*inputs, mask, False)[0], atol=5e-6)
    assert "all-gather" not in compiled.as_text()


def test_the_choice_follows_platform_length_and_mask() -> None:
    query = jax.ShapeDtypeStruct((2, 2048, 12, 64), jnp.bfloat16)
    short = jax.ShapeDtypeStruct((2, 64, 12, 64), jnp.bfloat16)
    keys, full = np.ones((2, 1, 1, 2048), bool), np.ones((2, 1, 2048, 2048), bool)
    assert choose("tpu", query, query, None) == choose("tpu", query, query, keys) == "splash"
    assert choose("tpu", query, query, full) == choose("cpu", query, query, None) == "blocked"
    assert choose("gpu", query, query, full) == "cudnn"
    single = jax.ShapeDtypeStruct(query.shape, jnp.float32)
    assert choose("gpu", single, single, None) == "blocked"
    for platform in ("cpu", "gpu", "tpu"):
        assert choose(platform, short, short, None) == "xla"


def test_blocked_attention_keeps_no_scores() -> None:
    """Temporary memory of forward and backward, against all scores of all heads."""
    x = jax.ShapeDtypeStruct((1, 2048, 4, 8), jnp.float32)
    scores = 4 * 4 * 2048 * 2048

    def temporaries(implementation: str) -> int:
        def loss(q, k, v):
            return jnp.sum(dot_product_attention(q, k, v, implementation=implementation) ** 2)

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("blocked") < scores / 2 < scores < temporaries("xla")


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((1, 8, 4, 8), (1, 8, 3, 8)), {}, "4 heads of queries cannot share 3"),
        (((1, 8, 2, 8), (1, 9, 2, 8)), {"causal": True}, "causal attention of 8 queries to 9"),
        (((1, 8, 2, 8), (1, 8, 2, 8)), {"mask": np.ones((1, 1, 8, 7), bool)}, "does not fit"),
        (
            ((1, 8, 2, 8), (1, 8, 2, 8)),
            {"mask": np.ones((1, 1, 8, 8), bool), "implementation": "splash"},
            "splash attention takes masks of keys",
        ),
    ],
)
def test_what_cannot_be_computed_is_said(shapes, options, message: str) -> None:
    query, key = (jnp.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        dot_product_attention(query, key, key, **options)
