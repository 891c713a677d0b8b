"""Bytes of the types that XLA prints in compiled programs, such as `f32[3,100]{1,0:T(8,128)}`."""

from __future__ import annotations

import math
import re

# Bits per element.
_BITS = {
    **dict.fromkeys(("pred", "s8", "u8"), 8),
    **dict.fromkeys(("s4", "u4"), 4),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    "c128": 128,
}
_ARRAY = re.compile(r"\b(pred|[su]\d+|b?f\d+\w*|c64|c128)\[([\d,<=]*)\](\{[^}]*\})?")


def size(shape: str) -> int:
    """Returns the bytes of a printed type, tuples summed, without the padding of tiles."""
    return sum(_bytes(kind, _sides(sides)) for kind, sides, _ in _ARRAY.findall(shape))


def memory_size(shape: str, *, anywhere: bool = False) -> int:
    """Returns the bytes of a printed type in the device's main memory, tiles padded.

    `f32[3,100]{1,0:T(8,128)}` takes 8 x 128 floats. Arrays marked S(1) are kept on the chip and
    count only with `anywhere`.
    """
    total = 0
    for kind, printed, layout in _ARRAY.findall(shape):
        space = re.search(r"S\((\d+)\)", layout)
        if space and int(space[1]) and not anywhere:
            continue
        sides = _sides(printed)
        order = re.match(r"\{([\d,]*)", layout)
        tile = re.search(r"T\(([\d,]+)\)", layout)
        if order and tile:
            minor_first = [int(axis) for axis in order[1].split(",") if axis]
            for axis, side in zip(minor_first, _sides(tile[1])[::-1], strict=False):
                sides[axis] = -(-sides[axis] // side) * side
        total += _bytes(kind, sides)
    return total


def _sides(text: str) -> list[int]:
    return [int(side.lstrip("<=")) for side in text.split(",") if side]


def _bytes(kind: str, sides: list[int]) -> int:
    return -(-math.prod(sides) * _BITS.get(kind, 8) // 8)  # the float8 kinds have 8 bits
