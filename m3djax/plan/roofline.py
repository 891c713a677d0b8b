"""Lower bounds of the time of a step, from published numbers; they are not predictions.

Each term is the time that one resource alone needs at full speed: the matrix units for the FLOPs,
HBM for the bytes, the links for the wire bytes. The step takes at least the largest term. It takes
longer in practice, because overlap is never perfect and only matrix products are counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from m3djax.plan.chips import Chip
from m3djax.plan.collectives import Collective
from m3djax.plan.topology import Topology

Places = Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The seconds per step that each resource needs.

    Attributes:
      model: seconds of the model's own FLOPs, without recomputation, at peak.
      compute: seconds of all executed FLOPs at peak.
      compute_padded: the same with matrix products padded to the matrix unit's side; None if that
        side is unknown.
      memory: seconds of the estimated HBM traffic.
      links: seconds of collectives within a slice; None if the program could not be read.
      network: seconds of collectives between slices; None if the program could not be read.
    """

    model: float
    compute: float
    compute_padded: float | None
    memory: float
    links: float | None
    network: float | None

    def bound(self, *, padded: bool) -> tuple[float, str]:
        """Returns the least seconds per step, and the name of the limiting term."""
        compute = self.compute_padded if padded else self.compute
        terms = {
            "compute": compute,
            "HBM": self.memory,
            "links": self.links,
            "network": self.network,
        }
        known = {name: seconds for name, seconds in terms.items() if seconds is not None}
        limit = max(known, key=lambda name: known[name])
        return known[limit], limit

    def mfu(self, *, padded: bool) -> float:
        """Returns an upper bound of the model FLOPs utilisation: FLOPs / (time x peak)."""
        return self.model / self.bound(padded=padded)[0]


def link_seconds(collectives: Iterable[Collective], topology: Topology, places: Places) -> float:
    """Returns the seconds of collectives within a slice, if all links are busy all the time.

    Args:
      collectives: the collectives of the step.
      topology: the devices.
      places: coordinates of each device in the order of the mesh.
    """
    return sum(
        each.wire / (_links(each, topology, places) * topology.chip.link)
        for each in collectives
        if not each.between_slices
    )


def network_seconds(collectives: Iterable[Collective], chip: Chip) -> float:
    """Returns the seconds of collectives between slices over the data centre's network."""
    return sum(each.wire for each in collectives if each.between_slices) / chip.network


def _links(collective: Collective, topology: Topology, places: Places) -> int:
    """Returns the fewest links that a chip has along the axes of a group.

    A chip has two links along a ring. The last chip of a line has one.
    """
    if topology.is_gpu:
        return 1  # the switch
    spans = zip(*(places[device] for device in collective.group), strict=True)
    ways = [
        2 if side > 2 and side % topology.chip.wraps == 0 else 1
        for side, along in zip(topology.sides, spans, strict=False)
        if len(set(along)) > 1
    ]
    return max(1, sum(ways))
