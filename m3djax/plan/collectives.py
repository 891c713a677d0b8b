"""Traffic between devices in one step, read from the compiled program.

Wire bytes are the bytes that a device must receive with the best algorithm; in a ring it sends as
many. Among n devices they are (n - 1) / n of the whole array for a gather, a scatter or an
all-to-all, twice that for an all-reduce, and the whole array for a permute.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

import numpy as np

from m3djax.plan.hlo import Call, Program
from m3djax.plan.hlo_types import size

# Wire bytes for a payload among n devices. The payload is the whole array of the group: the result
# of a gather, the operand of a reduction or of a scatter.
_WIRE: dict[str, Callable[[float, int], float]] = {
    "all-gather": lambda payload, n: payload * (n - 1) / n,
    "reduce-scatter": lambda payload, n: payload * (n - 1) / n,
    "all-to-all": lambda payload, n: payload * (n - 1) / n,
    "all-reduce": lambda payload, n: 2 * payload * (n - 1) / n,
    "collective-permute": lambda payload, n: payload,
    "collective-broadcast": lambda payload, n: payload,
}
# libtpu's names of collectives between slices, which it prints as transfers by the hosts.
_BETWEEN = {
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_REDUCE": "all-reduce",
    "ALL_TO_ALL": "all-to-all",
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: XLA's name, such as `all-gather`.
      times: number of runs per step.
      payload: bytes of the whole array in one run.
      group: one of the equal groups of devices, as indices in the mesh; for a permute, one sender
        and its receiver.
      between_slices: whether it uses the data centre's network between slices.
    """

    kind: str
    times: int
    payload: int
    group: tuple[int, ...]
    between_slices: bool = False

    @property
    def wire(self) -> float:
        """Returns the bytes per step that a device sends or receives."""
        return self.times * _WIRE[self.kind](self.payload, len(self.group))


def find(program: Program, devices: int, slices: int = 1) -> list[Collective]:
    """Returns all collectives of a program.

    Args:
      program: the compiled step.
      devices: number of devices in the whole mesh.
      slices: number of slices in the topology.

    Raises:
      ValueError: groups of devices are printed in an unknown form.
    """
    found = []
    for call in program.calls():
        if call.instruction.opcode == "send":
            found += _between_slices(call, slices)
            continue
        kind = call.instruction.opcode.removesuffix("-start")
        if kind not in _WIRE or (call.fused and _continues(call)):
            continue
        payload = sum(
            size(call.inside.instructions[name].shape) for name in call.instruction.operands
        )
        group = _group(call.instruction.attributes, devices)
        payload *= len(group) if kind == "all-gather" else 1
        if len(group) > 1:
            found.append(Collective(kind, call.times, payload, group))
    return found


def totals(collectives: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Returns count and bytes per step by kind; traffic between slices has rows of its own."""
    rows: dict[str, dict[str, float]] = {}
    for each in collectives:
        kind = f"{each.kind} between slices" if each.between_slices else each.kind
        row = rows.setdefault(kind, {"count": 0, "payload_bytes": 0, "wire_bytes": 0})
        row["count"] += each.times
        row["payload_bytes"] += each.times * each.payload
        row["wire_bytes"] += each.wire
    return rows


def _continues(call: Call) -> bool:
    """Returns whether a fusion only continues or ends a collective that another fusion started.

    libtpu prints an asynchronous collective again in each fusion that overlaps with it.
    """
    return call.inside.name.startswith("async_collective_fusion") or any(
        'custom_call_target="AsyncCollectiveDone"' in instruction.attributes
        for instruction in call.inside.instructions.values()
    )


def _between_slices(call: Call, slices: int) -> list[Collective]:
    attributes = call.instruction.attributes
    if "xla_megascale_runtime" not in attributes:
        return []
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', attributes)
    name = _BETWEEN.get(kind[1], "collective-permute") if kind else "collective-permute"
    payload = size(call.inside.instructions[call.instruction.operands[0]].shape)
    payload *= slices if name == "all-gather" else 1
    return [Collective(name, call.times, payload, tuple(range(slices)), between_slices=True)]


def _group(attributes: str, devices: int) -> tuple[int, ...]:
    """Returns one of the equal groups of devices, as indices in the mesh."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pairs[1]), int(pairs[2])
    groups = re.search(r"replica_groups=", attributes)
    if not groups:
        return tuple(range(devices))
    text = attributes[groups.end() :]
    if text.startswith("{}"):
        return tuple(range(devices))
    if listed := re.match(r"\{\{([\d,]+)\}", text):
        return _integers(listed[1])
    if tiled := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        ids = np.arange(np.prod(_integers(tiled[2]))).reshape(_integers(tiled[2]))
        ids = ids.transpose(_integers(tiled[3])) if tiled[3] else ids
        return tuple(ids.reshape(_integers(tiled[1]))[0].tolist())
    if named := re.match(r"mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        sides = {name: int(side) for name, side in re.findall(r"'([^']+)'=(\d+)", named[1])}
        wanted = re.findall(r"'([^']+)'", named[2])
        plain = ", ".join(f"'{name}'" for name in wanted)
        if named[2].replace(" ", "") == plain.replace(" ", "") and set(wanted) <= set(sides):
            ids = np.arange(np.prod(list(sides.values()))).reshape(tuple(sides.values()))
            along = tuple(slice(None) if name in wanted else 0 for name in sides)
            return tuple(ids[along].ravel().tolist())
    raise ValueError(f"groups of devices cannot be read: {text[:120]}")


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
