from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from m3djax.convert import name_map
from m3djax.convert.name_map import Fused, HeadRow, Linear, PatchConv, Rule, Same

RULES = (
    Rule("blocks.{i}.qkv.weight", ("q/kernel", "k/kernel", "v/kernel"), Fused(3)),
    Rule("head.weight", "head/kernel", Linear()),
    Rule("position_ids", ()),
)
EXPECTED = {
    "q/kernel": (2, 4, 3),
    "k/kernel": (2, 4, 3),
    "v/kernel": (2, 4, 3),
    "head/kernel": (4, 5),
}


def theirs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"blocks.0.qkv.weight": (9, 4), "blocks.1.qkv.weight": (9, 4), "head.weight": (5, 4)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def test_round_trip_is_bit_equal() -> None:
    ours = name_map.load(theirs() | {"position_ids": np.arange(3)}, RULES, EXPECTED)
    np.testing.assert_array_equal(ours["k/kernel"][1], theirs()["blocks.1.qkv.weight"][3:6].T)
    back = name_map.save(ours, RULES)
    assert back.keys() == theirs().keys()
    for name, value in theirs().items():
        np.testing.assert_array_equal(back[name], value)


@pytest.mark.parametrize(
    "via, shape",
    [(Same(lead=2), (1, 1, 6)), (Linear(), (3, 4)), (PatchConv((2, 3, 4)), (5, 1, 2, 3, 4)),
     (HeadRow(), (1, 7, 3)), (Fused(3), (6, 4)), (Fused(3), (6,))],
)  # fmt: skip
def test_transforms_are_two_way(via: name_map.Transform, shape: tuple[int, ...]) -> None:
    value = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_array_equal(via.save(via.load(value)), value)


SIDE = st.integers(1, 4)


@given(st.data())
def test_two_way_for_any_shape_and_number_of_layers(data: st.DataObject) -> None:
    """Tensors of layers are stacked in the order of their numbers, not of their names."""
    layers, rows, columns = (data.draw(SIDE) for _ in range(3))
    layers += 9  # from two digits on, "10" sorts before "2" by name
    rules = (*name_map.linear("net.{i}.fc", "net/fc"), *name_map.norm("net.{i}.ln", "net/ln"))
    kernel = arrays(np.float32, (rows, columns), elements=st.floats(-1, 1, width=32))
    values = {
        name: value
        for i in range(layers)
        for name, value in (
            (f"net.{i}.fc.weight", data.draw(kernel)),
            (f"net.{i}.fc.bias", np.full(rows, i, np.float32)),
            (f"net.{i}.ln.weight", np.full(columns, -i, np.float32)),
            (f"net.{i}.ln.bias", np.zeros(columns, np.float32)),
        )
    }
    expected = {
        "net/fc/kernel": (layers, columns, rows),
        "net/fc/bias": (layers, rows),
        "net/ln/scale": (layers, columns),
        "net/ln/bias": (layers, columns),
    }
    ours = name_map.load(dict(sorted(values.items())), rules, expected)
    np.testing.assert_array_equal(ours["net/fc/bias"][:, 0], np.arange(layers))
    np.testing.assert_array_equal(ours["net/ln/scale"][:, 0], -np.arange(layers))
    back = name_map.save(ours, rules)
    assert back.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(back[name], value)


@given(st.sets(st.sampled_from(sorted(theirs())), min_size=1), st.sets(st.text("xyz"), max_size=2))
def test_all_absent_and_extra_tensors_are_named_at_once(absent: set[str], extra: set[str]) -> None:
    tensors = {name: value for name, value in theirs().items() if name not in absent}
    tensors |= {f"extra.{name}": np.zeros(2) for name in extra}
    with pytest.raises(name_map.MapError) as error:
        name_map.load(tensors, RULES, EXPECTED)
    problems = error.value.problems
    for name in extra:
        assert f"unknown tensor: extra.{name} (2,)" in problems
    if "head.weight" in absent:
        assert "missing: head/kernel (4, 5), published as head.weight" in problems
    blocks = {name for name in absent if "qkv" in name}
    if len(blocks) == 2:
        for part in "qkv":
            published = "published as blocks.{i}.qkv.weight"
            assert f"missing: {part}/kernel (2, 4, 3), {published}" in problems
    elif blocks:
        assert "wrong shape: v/kernel: the file has (1, 4, 3), the model (2, 4, 3)" in problems


@pytest.mark.parametrize(
    "via, shape, message",
    [
        (Same(lead=2), (2, 1, 6), "expected 2 leading axes of length 1, got (2, 1, 6)"),
        (PatchConv((2, 2, 2)), (5, 1, 2, 3, 4), "expected a kernel of (2, 2, 2), got (2, 3, 4)"),
        (Fused(3), (7, 4), "array split does not result in an equal division"),
    ],
)
def test_a_transform_refuses_a_wrong_shape(
    via: name_map.Transform, shape: tuple[int, ...], message: str
) -> None:
    count = 3 if isinstance(via, Fused) else 1
    rule = Rule("w", tuple(f"part{i}" for i in range(count)), via)
    with pytest.raises(name_map.MapError) as error:
        name_map.load({"w": np.zeros(shape)}, (rule,), {})
    assert error.value.problems == (f"wrong shape: w: {message}",)


@pytest.mark.parametrize(
    "layers, name, layer",
    [
        (None, "blocks.3.w", 3),
        (None, "blocks.x.w", None),
        (None, "blocks.3.w.more", None),
        ((2, 5), "blocks.2.w", 0),
        ((2, 5), "blocks.4.w", 2),
        ((2, 5), "blocks.5.w", None),
        ((2, 5), "blocks.1.w", None),
    ],
)
def test_rules_of_some_layers(layers: tuple[int, int] | None, name: str, layer: int | None) -> None:
    assert Rule("blocks.{i}.w", "w", layers=layers).layer(name) == layer


@pytest.mark.parametrize(
    "change, message",
    [
        ({"extra.weight": np.zeros(2)}, r"unknown tensor: extra.weight \(2,\)"),
        ({"head.weight": None}, r"missing: head/kernel \(4, 5\)"),
        (
            {"head.weight": np.zeros((6, 4))},
            r"head/kernel: the file has \(4, 6\), the model \(4, 5\)",
        ),
        ({"blocks.0.qkv.weight": None}, r"layers of blocks.\{i\}.qkv.weight are not 0..0: \[1\]"),
    ],
)
def test_every_disagreement_is_named(change: dict, message: str) -> None:
    tensors = {k: v for k, v in (theirs() | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        name_map.load(tensors, RULES, EXPECTED)


def test_a_tensor_that_two_rules_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="ambiguous tensor: head.weight"):
        name_map.load(theirs(), (*RULES, Rule("head.{i}", ()), Rule("head.weight", "b")), EXPECTED)
