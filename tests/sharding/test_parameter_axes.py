"""Modules state what the dimensions of their parameters mean; no word alone gives a row."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from m3djax import adapters
from m3djax.mesh import sharding
from m3djax.mesh.parameter_axes import parameter_axes, register_axes
from m3djax.models.conditions import Conditions
from m3djax.models.layers import Dense
from m3djax.models.mae_decoder import MAEDecoder
from m3djax.models.mlp import FeedForward, Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.transformer import Block, Transformer
from m3djax.params import flatten, unflatten
from tests import tiny

MIXED = (None, None, None, None, "embed")


class Stem(nn.Module):
    """Convolves in 3D: a module of another package, with names of its own."""

    width: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, D, H, W, C) to (B, N, width)."""
        x = nn.Conv(self.width, (2, 2, 2), (2, 2, 2), name="faltung")(x)
        return x.reshape(len(x), -1, self.width)


class RelativeMlp(FeedForward):
    """Adds a table of relative positions, then routes tokens to all of its experts."""

    mlp: Mlp = Mlp(16)
    experts: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        """Averages what the experts make of every token."""
        table = self.param("relative_positions", nn.initializers.ones, (3, 3, 3, x.shape[-1]))
        x = x + table.mean((0, 1, 2))
        every = nn.vmap(
            lambda mlp, x: mlp(x),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=self.experts,
        )
        return every(self.mlp, x).mean(0)


class Encoder(nn.Module):
    """Holds both, in a stack of blocks."""

    stem: Stem = Stem()
    transformer: Transformer = Transformer()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Encodes volumes."""
        return self.transformer(self.stem(x))[0]


class Stranger(nn.Module):
    """Uses the words `embed`, `norm` and `query` for something else."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Twists tokens."""
        x = nn.LayerNorm(name="norm")(Dense(8, name="embed", dtype="float32")(x))
        return Dense(8, name="query", dtype="float32")(x)


register_axes(Stem, {"faltung/kernel": MIXED, "faltung/bias": (None,)})
register_axes(RelativeMlp, {"relative_positions": (None,) * 4}, stacked={"mlp": "experts"})

MODEL = {"scan": Encoder(transformer=Transformer(2, Block(Attention(2), RelativeMlp())))}


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh((2, 2, 2))


def test_convolutions_position_tables_and_experts_have_rows(mesh: jax.sharding.Mesh) -> None:
    volumes = jnp.ones((4, 4, 4, 4, 1))

    def init(key: jax.Array) -> dict:
        return flatten({"scan": MODEL["scan"].init(key, volumes)["params"]})

    flat = sharding.sharded(mesh, MODEL, init, jax.random.key(0))
    specs = {path.removeprefix("scan/"): leaf.sharding.spec for path, leaf in flat.items()}
    block = "transformer/block/"
    assert specs["stem/faltung/kernel"] == P(None, None, None, None, ("fsdp",))
    assert specs[block + "mlp/relative_positions"] == P(None, None, None, None, None)
    assert specs[block + "mlp/mlp/fc1/kernel"] == P(None, None, ("fsdp",), ("tensor",))
    assert specs[block + "attention/query/kernel"] == P(None, ("fsdp",), ("tensor",))
    assert flat["scan/" + block + "mlp/mlp/fc1/kernel"].shape == (2, 4, 8, 16)
    # Inside of the scan and the vmap kernels are gathered by the same rows.
    params = unflatten(flat)["scan"]
    with jax.set_mesh(mesh):
        split = jax.jit(MODEL["scan"].apply)({"params": params}, volumes)
    alone = MODEL["scan"].apply({"params": jax.tree.map(np.asarray, params)}, volumes)
    np.testing.assert_allclose(split, alone, atol=1e-5)


def test_another_module_with_the_same_words_gets_no_row() -> None:
    parts = {"scan": Stranger(), "decoder": MAEDecoder()}
    for path, ndim in {"embed/kernel": 2, "norm/scale": 1, "query/kernel": 2}.items():
        with pytest.raises(ValueError, match="matches no row.*beside Stranger .*test_parameter_ax"):
            parameter_axes(parts, f"scan/{path}", ndim)
    assert parameter_axes(parts, "decoder/embed/kernel", 2) == (None, "embed")


def test_the_error_comes_where_a_kernel_is_used(mesh: jax.sharding.Mesh) -> None:
    """Tracing needs the row too: nothing is gathered by guess."""
    tokens = jnp.ones((4, 2, 8))
    params = Stranger().init(jax.random.key(0), tokens)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"register_axes\(Stranger, {'embed/k"):
        Stranger().apply(params, tokens)


def test_what_is_not_exactly_one_row_is_an_error() -> None:
    task = tiny.mae()
    with pytest.raises(ValueError, match="llm/wte matches no row.*MAE"):
        parameter_axes(task, "llm/wte", 2)
    with pytest.raises(ValueError, match="one entry per dimension in the row 'norm.*' of ViT3D"):
        parameter_axes(task, "vision/norm/scale", 2)
    with pytest.raises(ValueError, match="twice"):
        register_axes(Stem, {})

    class Doubtful(nn.Module):
        pass

    register_axes(Doubtful, {"a.*": (None,), "ab": (None,)})
    with pytest.raises(ValueError, match="matches 2 rows.*'a.*' of Doubtful"):
        parameter_axes(Doubtful(), "ab", 1)


def test_subclasses_inherit_rows_and_may_state_others() -> None:
    class Wide(Stem):
        pass

    assert parameter_axes(Wide(), "faltung/kernel", 5) == MIXED
    register_axes(Wide, {"faltung/kernel": (None,) * 5})
    assert parameter_axes(Wide(), "faltung/kernel", 5) == (None,) * 5
    assert parameter_axes(Wide(), "faltung/bias", 1) == (None,)


def test_adapters_follow_the_kernel_beside_them() -> None:
    task = tiny.mae()
    layer = "vision/transformer/block/attention/out"
    assert parameter_axes(task, f"{layer}/kernel", 3) == ("layers", "heads", "embed")
    assert parameter_axes(task, f"{layer}/{adapters.A}", 3) == ("layers", "heads", None)
    assert parameter_axes(task, f"{layer}/{adapters.B}", 3) == ("layers", None, "embed")
