"""Traffic, roofline and the search for the largest batch, on numbers worked out by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from data_pipelines.errors import ConfigError
from m3djax.experiment import Experiment
from m3djax.plan import traffic
from m3djax.plan.collectives import Collective
from m3djax.plan.compile import OutOfMemory
from m3djax.plan.fit import Search
from m3djax.plan.hlo import Program
from m3djax.plan.roofline import Roofline, link_seconds, network_seconds
from m3djax.plan.topology import Topology
from tests import tiny
from tests.plan.test_hlo import TPU_LOOP

GB = 10**9


def places(*sides: int) -> list[tuple[int, ...]]:
    grid: list[tuple[int, ...]] = [()]
    for side in sides:
        grid = [(*place, at) for place in grid for at in range(side)]
    return grid


@pytest.mark.parametrize(
    "name, group, links",
    [
        ("v5e:4x4", range(16), 2),  # two lines: a corner has one link along each
        ("v5e:16x16", range(256), 4),  # two rings
        ("v5e:4x4", range(4), 1),  # one line
        ("v5e:8x16", range(128), 3),  # a line and a ring
        ("v5p:4x4x4", range(64), 6),  # three rings
        ("v5p:2x2x4", (0, 1, 2, 3), 2),
        ("h100:8", range(8), 1),  # the switch
    ],
)
def test_links_of_the_worst_placed_chip(name: str, group, links: int) -> None:
    topology = Topology(name)
    gather = Collective("all-gather", 2, 10 * GB, tuple(group))
    wire = 2 * 10 * GB * (len(group) - 1) / len(group)
    seconds = link_seconds([gather], topology, places(*topology.sides))
    assert seconds == pytest.approx(wire / (links * topology.chip.link))


def test_what_leaves_the_slice_takes_the_network() -> None:
    topology = Topology("v5e:4x4", slices=2)
    outside = Collective("all-reduce", 1, GB, (0, 1), between_slices=True)
    assert link_seconds([outside], topology, places(4, 4)) == 0
    assert network_seconds([outside], topology.chip) == pytest.approx(GB / topology.chip.network)


def test_the_largest_term_limits() -> None:
    bounds = Roofline(
        model=3.0, compute=4.0, compute_padded=6.0, memory=5.0, links=None, network=1.0
    )
    assert bounds.bound(padded=False) == (5.0, "HBM")
    assert bounds.bound(padded=True) == (6.0, "compute")
    assert bounds.mfu(padded=False) == pytest.approx(0.6)
    assert bounds.mfu(padded=True) == pytest.approx(0.5)


def test_traffic_counts_what_touches_main_memory() -> None:
    # The array of 4 KiB stays on the chip; the counter is copied once before the loop, and copied
    # and counted up in each of its 12 turns.
    counter = 4
    assert traffic.estimate(Program(TPU_LOOP)) == 2 * counter + 12 * (2 + 3) * counter


def test_slices_and_updates_in_place_count_as_what_they_touch() -> None:
    text = """\
%fused (a: f32[100,8], b: f32[1,8], i: s32[]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %row = f32[1,8]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,8}
  %sum = f32[1,8]{1,0} add(%row, %b)
  ROOT %new = f32[100,8]{1,0} dynamic-update-slice(%a, %sum, %i, %i)
}

ENTRY %main (p: f32[100,8], q: f32[1,8], n: s32[]) -> f32[100,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %q = f32[1,8]{1,0} parameter(1)
  %n = s32[] parameter(2)
  ROOT %f = f32[100,8]{1,0} fusion(%p, %q, %n), kind=kLoop, calls=%fused
}
"""
    row = 8 * 4
    # The slice, the addend, the index (by both its users), the updated row.
    assert traffic.estimate(Program(text)) == row + row + 4 + row


@dataclasses.dataclass
class Linear:
    """A compiler whose programs take `fixed + slope * batch` bytes, bent when they fit."""

    fixed: int
    slope: int
    limit: int
    bend: int = 0
    asked: list[int] = dataclasses.field(default_factory=list)

    def __call__(self, experiment: Experiment) -> SimpleNamespace:
        batch = experiment.data.batch_size
        self.asked.append(batch)
        needed = self.fixed + self.slope * batch
        if needed > self.limit:
            raise OutOfMemory(needed)
        return SimpleNamespace(memory=SimpleNamespace(needed=needed + self.bend))


@pytest.mark.parametrize("bend, probes", [(0, 3), (25, 4)])
def test_the_largest_batch_is_found_from_refusals(bend: int, probes: int) -> None:
    compiler = Linear(fixed=200, slope=3, limit=1000, bend=bend)
    data = dataclasses.replace(tiny.experiment().data, batch_size=128)
    default = tiny.experiment(data=data)
    search = Search(default, compiler, 1000, unit=8, say=lambda _: None)
    experiment, step = search.run()
    # 200 + 3 * 232 = 896 fits into 900; with 25 more it does not, and 224 is taken.
    assert experiment.data.batch_size == (232 if not bend else 224)
    assert step.memory.needed <= 900
    assert len(compiler.asked) == probes
    assert min(compiler.asked[:2]) > (1000 - 200) / 3, "a probe that fits takes minutes"


def test_a_model_that_never_fits_is_said_so() -> None:
    search = Search(tiny.experiment(), Linear(950, 3, 1000), 1000, unit=8, say=lambda _: None)
    with pytest.raises(ConfigError, match="not even a batch of 8"):
        search.run()
