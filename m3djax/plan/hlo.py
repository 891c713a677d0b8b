"""Parser of compiled programs: gives the instructions that run, and how often each runs.

XLA prints an optimised program as computations with one instruction per line. XLA's own cost
analysis counts the body of a loop once. Here, each instruction has a count: the product of the trip
counts of the loops around it. The parser reads the texts of libtpu, the CUDA plugin and the CPU
compiler of jax 0.10.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Iterator

_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: its name, without the leading %.
      shape: type of its result as printed, tuples in parentheses, layouts included.
      opcode: XLA's operation, such as `all-gather-start`.
      operands: names of its arguments; for a constant or parameter, the printed value.
      attributes: the rest of the line.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, key: str) -> str | None:
        """Returns the value of `key=value`, without the % of names; None if it is absent."""
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return found[1].lstrip("%") if found else None


@dataclasses.dataclass
class Computation:
    """A function of the program.

    Attributes:
      name: its name.
      instructions: its instructions by name, in order.
      root: name of the instruction whose result is returned.
    """

    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""


@dataclasses.dataclass(frozen=True)
class Call:
    """An instruction with the number of its runs at one place of the program.

    Attributes:
      instruction: the instruction.
      inside: the computation that contains it.
      times: number of runs per run of the program.
      fused: whether it is part of a fusion, whose inner values never reach memory.
    """

    instruction: Instruction
    inside: Computation
    times: int
    fused: bool


class Program:
    """A parsed program.

    Args:
      text: the result of `compiled.as_text()`.

    Attributes:
      computations: the computations by name.
      entry: name of the computation that starts.
      unknown_loops: loops with an unknown trip count; their bodies count once.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self.unknown_loops: list[str] = []
        current: Computation | None = None
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = self.computations[header[2]] = Computation(header[2])
                self.entry = header[2] if header[1] else self.entry
            elif current is not None and (name := _NAME.match(line)):
                current.instructions[name[2]] = _instruction(name[2], line[name.end() :])
                current.root = name[2] if name[1] else current.root
        if not self.entry:
            raise ValueError("the text is not a compiled program: it has no ENTRY.")

    def turn(self) -> Program:
        """Returns one iteration of the program's only loop of unknown length, as a program.

        Raises:
          ValueError: there is not exactly one such loop.
        """
        computation = self.computations[self.entry]
        bodies = [
            instruction.attribute("body") or ""
            for instruction in computation.instructions.values()
            if instruction.opcode == "while" and self._trip_count(instruction, computation) is None
        ]
        if len(bodies) != 1:
            raise ValueError(f"the program has {len(bodies)} loops of unknown length, not one.")
        one = copy.copy(self)
        one.entry, one.unknown_loops = bodies[0], []
        return one

    def calls(self) -> Iterator[Call]:
        """Yields each instruction that runs, from the entry down; both branches of conditionals."""
        yield from self._calls(self.entry, 1, fused=False)

    def _calls(self, name: str, times: int, *, fused: bool) -> Iterator[Call]:
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            yield Call(instruction, computation, times, fused)
            inner = times
            if instruction.opcode == "while":
                inner *= self._trips(instruction, computation)
            for callee in _callees(instruction):
                yield from self._calls(callee, inner, fused=fused or instruction.opcode == "fusion")

    def _trips(self, loop: Instruction, around: Computation) -> int:
        trips = self._trip_count(loop, around)
        if trips is None:
            self.unknown_loops.append(loop.name)
        return 1 if trips is None else trips

    def _trip_count(self, loop: Instruction, around: Computation) -> int | None:
        if known := re.search(r"known_trip_count\D*(\d+)", loop.attributes):
            return int(known[1])
        return self._counted(loop, around)

    def _counted(self, loop: Instruction, around: Computation) -> int | None:
        """Returns the trip count of a loop with constant start, stop and stride, else None."""
        condition = self.computations[loop.attribute("condition") or ""]
        body = self.computations[loop.attribute("body") or ""]
        test = condition.instructions[condition.root]
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        counter = _index(condition, test.operands[0])
        if counter is None:
            return None
        stop = _constant(condition, test.operands[1])
        if stop is None and (index := _index(condition, test.operands[1])) is not None:
            stop = _constant(around, _element(around, loop.operands[0], index))
        start = _constant(around, _element(around, loop.operands[0], counter))
        stride = _stride(body, counter)
        if start is None or stop is None or stride is None:
            return None
        return max(0, math.ceil((stop - start) / stride))


def _instruction(name: str, rest: str) -> Instruction:
    rest = _COMMENT.sub("", rest)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opened = rest.index("(")
    closed = _closing(rest, opened)
    operands = tuple(part.split()[-1].lstrip("%") for part in _parts(rest[opened + 1 : closed]))
    return Instruction(name, shape, rest[:opened], operands, rest[closed + 1 :])


def _closing(text: str, opened: int) -> int:
    """Returns the index of the bracket that closes the one at `opened`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opened):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"brackets do not close: {text[:80]}")


def _parts(arguments: str) -> list[str]:
    """Splits arguments at commas outside of brackets; older texts also print operands' types."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(arguments):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(arguments[start:index])
            start = index + 1
    return [part for part in [*parts, arguments[start:]] if part.strip()]


def _callees(instruction: Instruction) -> list[str]:
    """Returns the computations that an instruction runs, without those of reductions and sorts."""
    keys = {
        "while": ("body",),
        "fusion": ("calls",),
        "call": ("to_apply",),
        "async-start": ("calls",),
        "conditional": ("branch_computations", "true_computation", "false_computation"),
    }
    found = (instruction.attribute(key) for key in keys.get(instruction.opcode, ()))
    return [name for value in found if value for name in re.findall(r"[\w.\-]+", value)]


def _element(inside: Computation, name: str, index: int) -> str:
    """Returns the name of a tuple's element, or `name` if no `tuple` instruction has that name."""
    made = inside.instructions.get(name)
    if made is None or made.opcode != "tuple":
        return name
    return made.operands[index]


def _source(inside: Computation, name: str) -> Instruction | None:
    """Returns the instruction that makes a value, skipping copies."""
    made = inside.instructions.get(name)
    while made is not None and made.opcode in ("copy", "bitcast", "copy-start", "copy-done"):
        made = inside.instructions.get(made.operands[0])
    return made


def _constant(inside: Computation, name: str) -> int | None:
    """Returns the value of an integer constant; None if the name is not one."""
    made = _source(inside, name)
    if made is None or made.opcode != "constant" or not re.fullmatch(r"-?\d+", made.operands[0]):
        return None
    return int(made.operands[0])


def _index(inside: Computation, name: str) -> int | None:
    """Returns the index of the tuple element that a name stands for; None if it is not one."""
    made = _source(inside, name)
    if made is None or made.opcode != "get-tuple-element":
        return None
    return int(made.attribute("index") or 0)


def _stride(body: Computation, index: int) -> int | None:
    """Returns the constant that a loop's body adds to element `index`; None if it is not a sum."""
    made = _source(body, _element(body, body.root, index))
    if made is None or made.opcode != "add":
        return None
    for counter, step in (made.operands, made.operands[::-1]):
        stride = _constant(body, step)
        if _index(body, counter) == index and stride is not None and stride > 0:
            return stride
    return None
