"""Reading compiled programs: real ones of this CPU, and lines that only other compilers print."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3djax.plan.hlo import Program
from m3djax.plan.hlo_types import memory_size, size
from m3djax.plan.options import Options


def program(function, *arguments) -> Program:
    return Program(jax.jit(function).lower(*arguments).compile().as_text())


def test_loops_multiply_what_they_hold() -> None:
    def step(x, _):
        return jax.lax.scan(lambda x, _: (jnp.sort(x * 1.1), None), x, None, length=3)

    read = program(lambda x: jax.lax.scan(step, x, None, length=5)[0], jnp.ones(64))
    assert read.unknown_loops == []
    assert [c.times for c in read.calls() if c.instruction.opcode == "sort"] == [15]


def test_a_loop_that_starts_in_the_middle() -> None:
    loop = lambda x: jax.lax.fori_loop(2, 9, lambda i, x: jnp.sort(x + i), x)  # noqa: E731
    read = program(loop, jnp.ones(64))
    assert [c.times for c in read.calls() if c.instruction.opcode == "sort"] == [7]


def test_a_loop_of_unknown_length_counts_once_and_is_named() -> None:
    loop = lambda x: jax.lax.while_loop(  # noqa: E731
        lambda x: x.sum() > 1, lambda x: jnp.sort(x) / 2, x
    )
    read = program(loop, jnp.ones(64))
    assert [c.times for c in read.calls() if c.instruction.opcode == "sort"] == [1]
    assert len(read.unknown_loops) == 1


def test_one_turn_of_a_loop_is_a_program_of_its_own() -> None:
    def answer(x):
        return jnp.sort(jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: jnp.sort(x) / 2, x))

    read = program(answer, jnp.ones(64))
    sorts = lambda program: sum(c.instruction.opcode == "sort" for c in program.calls())  # noqa: E731
    assert (sorts(read), sorts(read.turn())) == (2, 1)
    assert read.turn().unknown_loops == []
    with pytest.raises(ValueError, match="0 loops of unknown length"):
        program(jnp.sort, jnp.ones(64)).turn()


def test_a_loop_as_libtpu_prints_it() -> None:
    """Counter and limit behind copies, no trip count, tuples with comments."""
    read = Program(TPU_LOOP)
    assert [c.times for c in read.calls() if c.instruction.opcode == "negate"] == [12]
    assert read.unknown_loops == []


TPU_LOOP = """\
HloModule jit_step, is_scheduled=true

%cond.1 (arg: (s32[], f32[8,128])) -> pred[] {
  %stop = s32[]{:T(128)} constant(12)
  %arg = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %stop), direction=LT
}

%body.1 (arg.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %one = s32[]{:T(128)} constant(1)
  %arg.1 = (s32[]{:T(128)}, /*index=1*/f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %copy.1 = s32[]{:T(128)} copy(%i.1)
  %next = s32[]{:T(128)} add(%copy.1, %one), metadata={op_name="jit(step)/while/body/add"}
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%arg.1), index=1
  %minus = f32[8,128]{1,0:T(8,128)S(1)} negate(%x)
  ROOT %out = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%next, %minus)
}

ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %copy.2 = s32[]{:T(128)} copy(%zero)
  %in = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%copy.2, %p)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) while(%in), condition=%cond.1, body=%body.1
  ROOT %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def test_sizes_of_types() -> None:
    assert size("f32[8,128]{1,0:T(8,128)}") == 4096
    assert size("(bf16[3,5]{1,0}, pred[], u32[2])") == 30 + 1 + 8
    assert size("s4[3]") == 2
    assert size("f8e4m3fn[10]") == 10
    assert size("token[]") == 0


def test_memory_is_padded_to_tiles_and_leaves_out_what_is_on_the_chip() -> None:
    assert memory_size("f32[3,100]{1,0:T(8,128)}") == 4 * 8 * 128
    assert memory_size("bf16[4,100,64]{1,2,0:T(8,128)(2,1)}") == 2 * 4 * 64 * 128
    assert memory_size("f32[8,128]{1,0:T(8,128)S(1)}") == 0
    assert memory_size("f32[8,128]{1,0:T(8,128)S(1)}", anywhere=True) == 4096
    assert memory_size("f32[7]") == 28


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("nothing")


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=3),
    st.sampled_from([("f32", 4), ("bf16", 2), ("s8", 1)]),
    st.tuples(st.sampled_from([1, 8]), st.sampled_from([1, 128])),
)
def test_tiles_pad_the_two_minor_sides(
    sides: list[int], kind: tuple[str, int], tile: tuple[int, int]
) -> None:
    name, width = kind
    order = ",".join(str(axis) for axis in reversed(range(len(sides))))
    printed = f"{name}[{','.join(map(str, sides))}]"
    tiled = f"{printed}{{{order}:T({tile[0]},{tile[1]})}}"
    padded = [*sides[:-2], *(-(-side // t) * t for side, t in zip(sides[-2:], tile, strict=True))]
    assert size(tiled) == size(printed) == memory_size(printed) == math.prod(sides) * width
    assert memory_size(tiled) == math.prod(padded) * width >= size(tiled)
    assert memory_size(f"({tiled}, {printed})") == memory_size(tiled) + size(printed)
    on_chip = tiled.replace("}", "S(1)}")
    assert memory_size(on_chip) == 0
    assert memory_size(on_chip, anywhere=True) == memory_size(tiled)


def test_options_of_a_plan_leave_the_fields_of_the_config() -> None:
    arguments = ["--task.mask-ratio", "0.5", "--topology", "v5e:4x4", "--fit", "--steps", "3"]
    options, fields = Options.parse(arguments)
    assert options == Options("v5e:4x4", slices=1, fit=True, json="")
    assert fields == ["--task.mask-ratio", "0.5", "--steps", "3"]
    assert Options.parse([], required=False)[0].topology == ""
    with pytest.raises(SystemExit):
        Options.parse(["--fit"])
