"""How fast a step could be at best: bounds from published numbers, never a prediction.

Each term is the time that one resource alone would need at its full speed: the matrix units for the
FLOPs, HBM for the bytes, the links for the wire bytes. The step cannot be faster than the largest;
it will be slower, as nothing overlaps perfectly and only matrix products are counted.
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
    """Seconds per step that each resource needs, and what follows.

    Attributes:
      model: seconds of the model's own FLOPs, without recomputation, at peak.
      compute: seconds of all executed FLOPs at peak.
      compute_padded: the same with matrix products padded to the matrix unit's side; None where
        that is not known.
      memory: seconds of the estimated traffic with HBM.
      links: seconds of collectives within a slice; None if the program could not be read.
      network: seconds of those between slices; None likewise.
    """

    model: float
    compute: float
    compute_padded: float | None
    memory: float
    links: float | None
    network: float | None

    def bound(self, *, padded: bool) -> tuple[float, str]:
        """Least seconds per step, and the term that limits."""
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
        """Upper bound on model FLOPs utilisation: the model's FLOPs over time times peak."""
        return self.model / self.bound(padded=padded)[0]


def link_seconds(collectives: Iterable[Collective], topology: Topology, places: Places) -> float:
    """Seconds that collectives within a slice need, if every link is used all the time.

    Args:
      collectives: of the step.
      topology: where.
      places: coordinates of each device in the order of the mesh.
    """
    return sum(
        each.wire / (_links(each, topology, places) * topology.chip.link)
        for each in collectives
        if not each.between_slices
    )


def network_seconds(collectives: Iterable[Collective], chip: Chip) -> float:
    """Seconds that collectives between slices need over the data centre's network."""
    return sum(each.wire for each in collectives if each.between_slices) / chip.network


def _links(collective: Collective, topology: Topology, places: Places) -> int:
    """Links that the worst placed chip has along the axes that a group spans.

    A chip has two along an axis that is a ring; on a line the last one has one.
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
