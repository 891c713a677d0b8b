"""Estimate of the bytes that a compiled step moves between HBM and the chip.

The estimate is read from the program's text. Each instruction outside of fusions reads its operands
and writes its result. If a fusion slices an operand or updates it in place, only that part counts.
Arrays that the compiler keeps on the chip do not count. A Pallas kernel counts each operand once,
however often it reads it. So the estimate is neither an upper nor a lower bound.
"""

from __future__ import annotations

from m3djax.plan.hlo import Call, Computation, Instruction, Program
from m3djax.plan.hlo_types import memory_size

# Instructions that move nothing themselves.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "async-start",
    "async-update",
    "async-done",
    "recv",
}
_FREE_TARGETS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
_SLICES = ("dynamic-slice", "slice", "gather")


def estimate(program: Program) -> int:
    """Returns the estimated HBM traffic in bytes per step and device."""
    return sum(call.times * _moved(call, program) for call in program.calls() if not call.fused)


def _moved(call: Call, program: Program) -> int:
    instruction = call.instruction
    if instruction.opcode in _FREE or any(
        f'"{target}"' in instruction.attributes for target in _FREE_TARGETS
    ):
        return 0
    operands = [_stored(call, name) for name in instruction.operands]
    result = memory_size(instruction.shape)
    if instruction.opcode in ("copy-start", "slice-start"):
        return 0
    if instruction.opcode in ("copy-done", "slice-done"):
        start = call.inside.instructions[instruction.operands[0]]
        read = memory_size(instruction.shape, anywhere=True)
        return result + (read if _stored(call, start.operands[0]) else 0)
    if instruction.opcode.endswith("-start"):
        return sum(operands)
    if instruction.opcode.endswith("-done"):
        return result
    if instruction.opcode in _SLICES:
        return 2 * result
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1]
    if instruction.opcode == "fusion":
        fused = program.computations[instruction.attribute("calls") or ""]
        return _read(program, fused, operands) + _written(fused, fused.root, result)
    return sum(operands) + result


def _stored(call: Call, name: str) -> int:
    """Returns the bytes of a value in main memory; 0 for a literal."""
    made = call.inside.instructions.get(name)
    return memory_size(made.shape) if made else 0


def _read(program: Program, fused: Computation, operands: list[int]) -> int:
    """Returns the bytes that a fusion reads; `operands` are the whole sizes of its operands."""
    users: dict[str, list[tuple[Instruction, int]]] = {}
    for instruction in fused.instructions.values():
        for place, name in enumerate(instruction.operands):
            users.setdefault(name, []).append((instruction, place))

    def touched(name: str, whole: int) -> int:
        return min(whole, sum(part(user, place, whole) for user, place in users.get(name, [])))

    def part(user: Instruction, place: int, whole: int) -> int:
        if user.opcode == "bitcast":
            return touched(user.name, whole)
        if user.opcode in _SLICES and place == 0:
            return memory_size(user.shape)
        if user.opcode == "dynamic-update-slice" and place == 0:
            return 0
        if user.opcode == "fusion":  # a fusion in a fusion
            inner = program.computations[user.attribute("calls") or ""]
            return _read(
                program, inner, [whole * (at == place) for at in range(len(user.operands))]
            )
        return whole

    return sum(
        touched(instruction.name, operands[int(instruction.operands[0])])
        for instruction in fused.instructions.values()
        if instruction.opcode == "parameter"
    )


def _written(fused: Computation, name: str, whole: int) -> int:
    """Returns the bytes that a fusion writes; an update in place writes only its part."""
    made = fused.instructions[name]
    while made.opcode == "bitcast":
        made = fused.instructions[made.operands[0]]
    if made.opcode == "dynamic-update-slice":
        return min(whole, memory_size(fused.instructions[made.operands[1]].shape))
    if made.opcode == "tuple":
        return min(
            whole,
            sum(
                _written(fused, part, memory_size(fused.instructions[part].shape))
                for part in made.operands
            ),
        )
    return whole
