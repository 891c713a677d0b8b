"""Names of absent machines, and what they stand for."""

from __future__ import annotations

import re

import pytest

from data_pipelines.errors import ConfigError
from m3djax.plan.chips import CHIPS
from m3djax.plan.collectives import Collective, totals
from m3djax.plan.roofline import Roofline
from m3djax.plan.topology import Topology


@pytest.mark.parametrize(
    "name, slices, sides, size, kind",
    [
        ("v5e:4x4", 1, (4, 4), 16, "TPU v5 lite"),
        ("v5e:16x16", 2, (16, 16), 512, "TPU v5 lite"),
        ("v6e:1x1", 3, (1, 1), 3, "TPU v6 lite"),
        ("v4:2x2x4", 1, (2, 2, 4), 16, "TPU v4"),
        ("v5p:28x16x20", 1, (28, 16, 20), 8960, "TPU v5"),  # a pod in any order of its axes
        ("h100:8", 1, (8,), 8, "NVIDIA H100"),
    ],
)
def test_names_of_machines(
    name: str, slices: int, sides: tuple[int, ...], size: int, kind: str
) -> None:
    topology = Topology(name, slices)
    assert (topology.sides, topology.size) == (sides, size)
    assert topology.chip.device_kind == kind
    assert topology.is_gpu == name.startswith("h100")


@pytest.mark.parametrize(
    "name, slices, problem",
    [
        ("v5e", 1, "it does not have the form FAMILY:SIDExSIDE"),
        ("v5e:", 1, "it does not have the form FAMILY:SIDExSIDE"),
        ("v5e:4x", 1, "it does not have the form FAMILY:SIDExSIDE"),
        ("v5e:4x-4", 1, "it does not have the form FAMILY:SIDExSIDE"),
        ("v9:4x4", 1, "'v9' is not one of v4, v5e, v5p, v6e, h100"),
        ("v5e:4", 1, "v5e needs 2 side(s); sides and slices start at 1"),
        ("v5p:4x4", 1, "v5p needs 3 side(s); sides and slices start at 1"),
        ("h100:2x4", 1, "h100 needs 1 side(s); sides and slices start at 1"),
        ("v5e:0x4", 1, "v5e needs 2 side(s); sides and slices start at 1"),
        ("v5e:4x4", 0, "v5e needs 2 side(s); sides and slices start at 1"),
        ("v5e:4x32", 1, "the largest slice of v5e is 16x16"),
        ("v5p:20x20x20", 1, "the largest slice of v5p is 16x20x28"),
        ("h100:9", 1, "the largest slice of h100 is 8"),
        ("h100:8", 2, "several hosts of GPUs cannot be planned"),
    ],
)
def test_machines_that_do_not_exist(name: str, slices: int, problem: str) -> None:
    cure = "Cure: for example v5e:4x4, v5p:4x4x4 or h100:8."
    with pytest.raises(ConfigError, match=re.escape(f"topology {name!r}: {problem}. {cure}")):
        Topology(name, slices)


@pytest.mark.parametrize(
    "name, teraflops", [("v4", 275), ("v5e", 197), ("v5p", 459), ("v6e", 918), ("h100", 989)]
)
def test_peaks_are_those_of_the_data_sheets(name: str, teraflops: float) -> None:
    assert CHIPS[name].peak == pytest.approx(teraflops * 1e12, rel=2e-3)


def test_totals_are_sums_over_runs_by_kind() -> None:
    found = totals(
        [
            Collective("all-reduce", 3, 100, (0, 1, 2, 3)),
            Collective("all-reduce", 1, 40, (0, 1)),
            Collective("all-reduce", 2, 100, (0, 1), between_slices=True),
            Collective("collective-permute", 5, 8, (2, 3)),
        ]
    )
    assert found == {
        "all-reduce": {"count": 4, "payload_bytes": 340, "wire_bytes": 3 * 150 + 40},
        "all-reduce between slices": {"count": 2, "payload_bytes": 200, "wire_bytes": 200},
        "collective-permute": {"count": 5, "payload_bytes": 40, "wire_bytes": 40},
    }
    assert totals([]) == {}


def test_unknown_terms_do_not_limit() -> None:
    bounds = Roofline(1.0, 2.0, None, 1.5, None, None)
    assert bounds.bound(padded=False) == (2.0, "compute")
    assert bounds.bound(padded=True) == (1.5, "HBM")
    assert bounds.mfu(padded=False) == 0.5
