"""Partitions of arrays of any shape on any mesh, and every row of the sharding table."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipelines.errors import ConfigError
from m3djax.losses.contrastive import InfoNCE, SigmoidPairs
from m3djax.mesh import parameter_axes as table
from m3djax.mesh import sharding
from m3djax.mesh.parameter_axes import MESH_AXES, LogicalAxes, parameter_axes
from m3djax.models.bert import Bert, MaskedLanguageHead, PostNormBlock, TextEmbeddings
from m3djax.models.embedding_head import AttentionPool, EmbeddingHead
from m3djax.models.encoder import Level, VisibleTokens, VisionFeatures
from m3djax.models.llm.decoder import CausalAttention, Decoder, DecoderBlock
from m3djax.models.mlp import GatedMlp, Mlp
from m3djax.models.multi_head import Attention
from m3djax.models.positions import LearnedPositions
from m3djax.models.projectors import Projector
from m3djax.models.transformer import Transformer
from m3djax.params import flatten
from tests import tiny

EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True, database=None)
SIZES = st.sampled_from([1, 2, 3, 4, 8])
AXES = st.sampled_from([None, *MESH_AXES])


def mesh_of(*sizes: int) -> AbstractMesh:
    return AbstractMesh(sizes, sharding.AXES)


@EXAMPLES
@given(
    dims=st.lists(st.tuples(st.integers(0, 40), AXES), max_size=4),
    sizes=st.tuples(SIZES, SIZES, SIZES),
)
def test_a_dimension_is_split_over_all_its_axes_or_not_at_all(
    dims: list[tuple[int, str | None]], sizes: tuple[int, int, int]
) -> None:
    """The rule of `MESH_AXES`, for every logical axis, with odd and empty dimensions."""
    shape, axes = tuple(dim for dim, _ in dims), tuple(axis for _, axis in dims)
    with jax.sharding.use_abstract_mesh(mesh_of(*sizes)):
        spec = sharding.activation_spec(shape, axes)
    split = dict(zip(sharding.AXES, sizes, strict=True))
    wanted = []
    for size, axis in dims:
        over = tuple(name for name in MESH_AXES[axis or "layers"] if split[name] > 1)
        parts = int(np.prod([split[name] for name in over]))
        wanted.append(over if over and size % parts == 0 else None)
    assert spec == P(*wanted)


@pytest.mark.parametrize(
    ("sizes", "spec"),
    [
        ((8, 1, 1), P(None, None)),
        ((1, 8, 1), P(("fsdp",), None)),
        ((1, 1, 8), P(None, ("tensor",))),
        ((2, 2, 2), P(("fsdp",), ("tensor",))),
        ((1, 3, 1), P(None, None)),  # 16 is no multiple of 3
        ((1, 32, 1), P(None, None)),  # more devices than channels
        ((1, 3, 4), P(None, ("tensor",))),
    ],
    ids=str,
)
def test_a_kernel_on_meshes_that_divide_it_or_not(sizes: tuple[int, int, int], spec: P) -> None:
    path = "vision/transformer/block/mlp/fc1/kernel"
    found = sharding.parameter_spec(path, (2, 16, 32), mesh_of(*sizes), tiny.mae())
    assert found == P(None, *spec)


def test_a_table_of_words_is_split_over_both_axes_or_kept_whole() -> None:
    task = tiny.vision_language()
    for rows, mesh, wanted in (
        (64, (1, 2, 4), ("fsdp", "tensor")),
        (64, (4, 1, 2), ("tensor",)),
        (62, (1, 2, 2), None),  # 62 rows over 2 would fit, but not over 4
        (63, (1, 3, 1), ("fsdp",)),
    ):
        path = "llm/token_embed/embedding"
        assert sharding.parameter_spec(path, (rows, 32), mesh_of(*mesh), task) == P(wanted, None)


# Every row of the table.

ROWS = {
    (module, pattern): axes
    for module, rows in table._ROWS.items()
    if module.__module__.startswith("m3djax.")
    for pattern, axes in rows.items()
}


def parts() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    """Small modules with inputs, which have a parameter for every row between them."""
    tokens, ids = jnp.ones((2, 6, 16)), jnp.ones((2, 6), jnp.int32)
    vectors = jnp.ones((2, 16))
    pairs = (vectors, vectors, jnp.arange(2), jnp.ones(2, bool))
    features = VisionFeatures((Level(jnp.ones((2, 1, 2, 3, 16)), (4, 4, 4)),))
    visible = VisibleTokens(tokens, (1, 2, 4), vectors)
    attention = CausalAttention(2, 1, 8, qkv_bias=True, out_bias=True, qk_norm=True)
    apart = DecoderBlock(attention, GatedMlp(24, use_bias=True))
    joined = DecoderBlock(attention.clone(fused=True), GatedMlp(24, True, use_bias=True))
    bert = Transformer(2, PostNormBlock(Attention(2), Mlp(32)))
    task = tiny.mae()
    return {
        "vision": (task.vision.clone(cls_position=True), (jnp.ones((2, 8, 16, 16, 1)),)),
        "mae_decoder": (task.mae_decoder, (visible, jnp.zeros((2, 8), jnp.int32), 64)),
        "text": (Bert(TextEmbeddings(50, 16, 8), bert, True), (ids,)),
        "words": (MaskedLanguageHead(50), (tokens,)),
        "llm": (Decoder(64, None, 16, (Transformer(2, apart), Transformer(3, joined))), (ids,)),
        "projector": (Projector(32, "none"), (features,)),
        "head": (EmbeddingHead(8, "attention", AttentionPool(2)), (tokens,)),
        "info_nce": (InfoNCE(), pairs),
        "released": (InfoNCE(released=True), pairs),
        "sigmoid": (SigmoidPairs(form="dense"), pairs),
    }


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[tuple[type, str], LogicalAxes, tuple[int, ...]]]:
    """Path of a parameter -> the row that it has, its axes and its shape."""
    models = parts()
    modules = {name: module for name, (module, _) in models.items()}
    rows: dict[str, Any] = {}
    for name, (module, inputs) in models.items():
        shapes = jax.eval_shape(lambda m=module, i=inputs: m.init(jax.random.key(0), *i))["params"]
        for path, leaf in flatten({name: shapes}).items():
            axes = parameter_axes(modules, path, leaf.ndim)
            _, levels = table._levels(modules, path)
            (row,) = [
                (cls, pattern)
                for owner, rest in levels
                for cls in owner.__mro__
                for pattern in table._ROWS.get(cls, {})
                if re.fullmatch(pattern, rest)
            ]
            rows[path] = (row, axes, leaf.shape)
    return rows


def test_every_row_belongs_to_a_parameter(found: dict[str, Any]) -> None:
    """A row whose parameter was renamed would stay behind."""
    assert ROWS.keys() == {row for row, _, _ in found.values()}


def test_no_row_splits_two_dimensions_over_one_axis() -> None:
    """JAX would refuse the sharding, but only on a mesh where both axes are larger than 1."""
    for row, axes in ROWS.items():
        used = [name for axis in axes if axis for name in MESH_AXES[axis]]
        assert len(used) == len(set(used)), row


@pytest.mark.parametrize(
    ("pattern", "axes"),
    [
        (".*/(query|key|value|qkv)/kernel", ("embed", "heads")),
        (".*/(query|key|value|qkv)/bias", ("heads",)),
        (".*/(query|key)_norm/scale", (None,)),
        (".*/attention/out/kernel", ("heads", "embed")),
        (".*/(fc1|gate|up|gate_up)/kernel", ("embed", "mlp")),
        (".*/(fc1|gate|up|gate_up)/bias", ("mlp",)),
        (".*/(fc2|down)/kernel", ("mlp", "embed")),
        (".*/(out|fc2|down)/bias", (None,)),
        (".*/block/norm[12]/(scale|bias)", (None,)),
        # Where a table is split over rows, the product that it enters is split over words.
        ("llm/token_embed/embedding", ("vocabulary", None)),
        ("llm/head/kernel", (None, "vocabulary")),
        ("text/embeddings/words/table", ("vocabulary", None)),
        ("words/(decoder/table|vocabulary_bias)", ("vocabulary", None)),
        (".*/(types|positions)/table", (None, None)),
        # Layers that lie outside of blocks.
        (".*/(patch_embed|embed|predict|pooler|projection|transform)/kernel", (None, "embed")),
        (".*/linear_[01]/kernel", (None, "embed")),
        (".*/(patch_embed|embed|predict|pooler|projection|transform|linear_[01])/bias", (None,)),
        (".*/(cls|cls_position|mask_token|probe)", (None,)),
        (r"\w+(/embeddings)?/norm/(scale|bias)", (None,)),
        ("(info_nce|released|sigmoid)/(log_scale|scale|bias)", ()),
    ],
)
def test_the_meaning_of_each_dimension(
    pattern: str, axes: LogicalAxes, found: dict[str, Any]
) -> None:
    """What reads tokens is split over its outputs, and what writes them over its inputs."""
    matching = {path: value for path, value in found.items() if re.fullmatch(pattern, path)}
    assert matching
    for path, (_, known, shape) in matching.items():
        stack = ("layers",) if "/block/" in path else ()
        assert known == (*stack, *axes)[: len(shape)], path


def test_all_parameters_are_listed_above(found: dict[str, Any]) -> None:
    (marks,) = [m for m in test_the_meaning_of_each_dimension.pytestmark if m.name == "parametrize"]
    patterns = [pattern for pattern, _ in marks.args[1]]
    unlisted = {path for path in found if not any(re.fullmatch(p, path) for p in patterns)}
    assert not unlisted


# Modules that the table does not know, or knows twice.


class Pair(nn.Module):
    """Two modules in one field, and one in a dict."""

    both: tuple[nn.Module, ...] = (LearnedPositions((2, 2, 2)), Mlp(4))
    named: Any = dataclasses.field(default_factory=lambda: FrozenDict({"left": Mlp(4)}))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies them in turn."""
        return self.named["left"](self.both[1](x + self.both[0]((2, 2, 2), x.shape[-1])))


def test_modules_in_tuples_and_dicts_keep_their_rows() -> None:
    """Flax names them by their place."""
    params = jax.eval_shape(lambda: Pair().init(jax.random.key(0), jnp.ones((1, 8, 6))))["params"]
    axes = {p: parameter_axes(Pair(), p, leaf.ndim) for p, leaf in flatten(params).items()}
    mlp = {"fc1/kernel": ("embed", "mlp"), "fc1/bias": ("mlp",)}
    mlp |= {"fc2/kernel": ("mlp", "embed"), "fc2/bias": (None,)}
    wanted = {
        f"{name}/{path}": row for name in ("both_1", "named_left") for path, row in mlp.items()
    }
    assert axes == wanted | {"both_0/table": (None, None)}


def test_a_row_of_an_outer_module_that_repeats_an_inner_one_is_refused() -> None:
    class Outer(nn.Module):
        mlp: nn.Module = Mlp(4)

    table.register_axes(Outer, {"mlp/fc1/bias": (None,)})
    with pytest.raises(ConfigError) as caught:
        parameter_axes({"part": Outer()}, "part/mlp/fc1/bias", 1)
    said = str(caught.value)
    assert "parameter part/mlp/fc1/bias matches 2 rows of the sharding table" in said
    assert "'mlp/fc1/bias' of Outer" in said and "'fc1/bias' of Mlp (m3djax.models.mlp)" in said
    assert parameter_axes({"part": Outer()}, "part/mlp/fc2/bias", 1) == (None,)


def test_an_axis_that_does_not_exist_is_refused_at_once() -> None:
    class Wrong(nn.Module):
        pass

    with pytest.raises(ConfigError, match="'a/kernel' names the axis 'head'.*Cure: one of batch, "):
        table.register_axes(Wrong, {"a/kernel": ("embed", "head")})
    assert Wrong not in table._ROWS


@pytest.mark.parametrize(
    ("path", "ndim", "message"),
    [
        ("vision/unknown/kernel", 2, r"beside ViT3D .*register_axes\(ViT3D, {'unknown/kernel': "),
        ("vision/transformer/block/mlp/fc3/kernel", 3, r"register_axes\(Mlp, {'fc3/kernel': "),
        ("nothing/kernel", 2, r"register_axes\(MAE, {'nothing/kernel': "),
        ("vision/patch_embed/kernel", 3, r"has 3 dimensions, and .* says \(None, 'embed'\)"),
        (
            "vision/transformer/block/mlp/fc1/bias",
            1,
            r"says \('layers', 'mlp'\).*given as stacked=",
        ),
        ("vision/transformer/block/mlp/fc1/lora_c", 3, "matches no row"),
        ("vision/patch_embed/bias/lora_a", 2, "patch_embed/bias/kernel matches no row"),
    ],
)
def test_what_has_no_row_names_the_module_that_needs_one(
    path: str, ndim: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parameter_axes(tiny.mae(), path, ndim)


def test_a_dict_of_modules_alone_is_no_place_for_a_row() -> None:
    with pytest.raises(ConfigError, match="other/kernel matches no row.*no module has this name"):
        parameter_axes({"vision": tiny.mae().vision}, "other/kernel", 2)


# Where arrays lie.


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh((2, 2, 2))


@pytest.mark.parametrize("shape", [(0, 1, -1), (2, -4, -1), (-2, -4, 1), (8, 1, 0), (-1, 16, 1)])
def test_sizes_that_make_no_mesh_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"does not fit 8 devices. Cure: let the sizes"):
        sharding.make_mesh(shape)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of one of several slices."""

    id: int
    slice_index: int
    process_index: int = 0


def test_slices_must_divide_the_data_axis() -> None:
    chips: Any = [Chip(number, number // 4) for number in range(8)]
    with pytest.raises(ConfigError, match="data axis of 1 cannot be split over 2 slices. Cure: "):
        sharding.make_mesh((1, -1, 1), chips)


def test_an_activation_without_a_mesh_stays_the_same_object() -> None:
    x = jnp.ones((4, 6))
    assert sharding.constrain(x, ("batch", "heads")) is x
    assert sharding.gather(tiny.mae().vision, "patch_embed/kernel", x) is x


def test_an_activation_is_split_and_keeps_its_values(mesh: jax.sharding.Mesh) -> None:
    x = np.arange(8 * 3 * 6, dtype=np.float32).reshape(8, 3, 6)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: sharding.constrain(x, ("batch", None, "heads")))(x)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"), None, "tensor")), 3)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (4, 1, 2)], ids=str)
def test_a_gathered_kernel_stays_split_over_tensor_alone(sizes: tuple[int, int, int]) -> None:
    """With an fsdp axis of size 1 nothing is left to gather."""
    mesh, owner = sharding.make_mesh(sizes), Mlp(6)
    kernel = np.arange(24, dtype=np.float32).reshape(4, 6)
    given = sharding.parameter_spec("fc1/kernel", kernel.shape, mesh, owner)
    placed = jax.device_put(kernel, NamedSharding(mesh, given))
    with jax.set_mesh(mesh):
        whole = jax.jit(lambda k: sharding.gather(owner, "fc1/kernel", k))(placed)
    assert whole.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "tensor")), 2)
    np.testing.assert_array_equal(whole, kernel)


def test_a_state_is_split_by_paths_and_its_counters_are_not(mesh: jax.sharding.Mesh) -> None:
    path = "vision/patch_embed/kernel"
    leaf = jax.ShapeDtypeStruct((64, 16), jnp.float32)
    state = {"trainable": {path: leaf}, "moments": ({path: leaf}, jnp.zeros(())), "step": 3.0}
    state["step"] = jax.ShapeDtypeStruct((), jnp.int32)
    with pytest.raises(ConfigError, match="parameter step matches no row"):
        sharding.state_shardings(state, mesh, tiny.mae())
    del state["step"]
    found = sharding.state_shardings(state, mesh, tiny.mae())
    split = NamedSharding(mesh, P(None, ("fsdp",)))
    assert found == {
        "trainable": {path: split},
        "moments": ({path: split}, NamedSharding(mesh, P())),
    }


def test_results_of_a_function_are_laid_out_by_the_rows(mesh: jax.sharding.Mesh) -> None:
    """Values are those of the function, and a parameter that is not divisible stays whole."""
    model = {"part": Mlp(6)}

    def make(scale: jax.Array) -> dict[str, jax.Array]:
        return {
            "part/fc1/kernel": scale * jnp.arange(24.0).reshape(4, 6),
            "part/fc2/kernel": scale * jnp.ones((7, 5)),
        }

    flat = sharding.sharded(mesh, model, make, jnp.float32(2))
    assert flat["part/fc1/kernel"].sharding.spec == P(("fsdp",), ("tensor",))
    assert flat["part/fc2/kernel"].sharding.is_fully_replicated
    np.testing.assert_array_equal(flat["part/fc1/kernel"], 2 * np.arange(24.0).reshape(4, 6))
    alone, own = sharding.for_one_process(flat, mesh, model)
    assert own is mesh and alone == flat and alone is not flat


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)], ids=str)
@pytest.mark.parametrize("rows", [8, 24])
def test_rows_of_processes_cover_a_batch(shape: tuple[int, int, int], rows: int) -> None:
    """As if every device were in a process of its own: rows are shared along tensor only."""
    mesh = sharding.make_mesh(shape)
    places = sharding.batch_sharding(mesh).devices_indices_map((rows,))
    each = [tuple(range(*index[0].indices(rows))) for index in places.values()]
    assert sorted(sum(each, ())) == sorted([*range(rows)] * shape[2])
    assert sharding.rows_by_process(mesh, rows) == {0: tuple(range(rows))}
    if shape[0] * shape[1] > 1:
        with pytest.raises(ConfigError, match=f"batch_size={rows + 1} cannot be split over data x"):
            sharding.rows_by_process(mesh, rows + 1)
