from __future__ import annotations

import numpy as np
import pytest

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
