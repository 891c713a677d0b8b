from __future__ import annotations

import jax
import jax.numpy as jnp

from m3djax import flops, sharding
from m3djax.models.transformer import Attention, Block, Mlp, Transformer


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
    assert 1e8 < flops.peak(sharding.make_mesh((-1, 1, 1))) < 1e14
