"""Collectives of compiled programs: their number and bytes, loops included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from m3djax.mesh import sharding
from m3djax.plan.collectives import Collective, find, totals
from m3djax.plan.hlo import Program

TURNS = 3
EVERYWHERE = P(("data", "fsdp", "tensor"))
KIB = 1024


def found(body) -> list[Collective]:
    """Collectives of a loop on a (2, 2, 2) mesh, where each device holds 4 KiB."""
    mesh = sharding.make_mesh((2, 2, 2))

    def loop(x):
        return lax.scan(lambda x, _: (body(x), None), x, None, length=TURNS)[0]

    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, EVERYWHERE))
    with jax.set_mesh(mesh):
        mapped = jax.shard_map(loop, in_specs=EVERYWHERE, out_specs=EVERYWHERE, check_vma=False)
        text = jax.jit(mapped).lower(x).compile().as_text()
    return find(Program(text), 8)


@pytest.mark.parametrize(
    "kind, payload, wire, group, body",
    [
        ("all-reduce", 4, 4, (0, 4), lambda x: lax.psum(x, "data") / 2),
        ("all-reduce", 4, 6, (0, 1, 4, 5), lambda x: lax.psum(x, ("data", "tensor")) / 4),
        ("all-gather", 8, 4, (0, 2), lambda x: lax.all_gather(x, "fsdp", tiled=True)[4:12]),
        (
            "reduce-scatter",
            8,
            4,
            (0, 1),
            lambda x: lax.psum_scatter(jnp.tile(x, (2, 1)), "tensor", tiled=True),
        ),
        ("collective-permute", 4, 4, (0, 4), lambda x: lax.ppermute(x, "data", [(0, 1), (1, 0)])),
        ("all-to-all", 4, 2, (0, 1), lambda x: lax.all_to_all(x, "tensor", 0, 0, tiled=True)),
    ],
)
def test_every_kind(kind: str, payload: int, wire: int, group: tuple[int, ...], body) -> None:
    (only,) = found(body)
    assert (only.kind, only.times, only.group) == (kind, TURNS, group)
    assert only.payload == payload * KIB
    assert only.wire == TURNS * wire * KIB
    assert totals([only, only]) == {
        kind: {
            "count": 2 * TURNS,
            "payload_bytes": 2 * TURNS * payload * KIB,
            "wire_bytes": 2 * TURNS * wire * KIB,
        }
    }


@pytest.mark.parametrize(
    "groups, expected",
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,2]<=[4]", (0, 1)),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", (0, 1, 4, 5)),
        ("replica_groups=mesh['axis_0'=4] {'axis_0'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a', 'c'}", (0, 1, 4, 5)),
        ("replica_groups={}", (0, 1, 2, 3, 4, 5, 6, 7)),
    ],
)
def test_every_way_to_print_groups(groups: str, expected: tuple[int, ...]) -> None:
    line = f"  %r = f32[8]{{0}} all-reduce(%p), channel_id=1, {groups}, to_apply=%add"
    (only,) = find(Program(_entry(line)), 8)
    assert only.group == expected


def test_groups_that_cannot_be_read_are_an_error() -> None:
    line = "  %r = f32[8]{0} all-reduce(%p), replica_groups=mesh['a'=8] {'a':(2)4}"
    with pytest.raises(ValueError, match="cannot be read"):
        find(Program(_entry(line)), 8)


def test_an_asynchronous_collective_counts_once_however_often_it_is_printed() -> None:
    """libtpu spreads it over fusions of one channel; the same channel may also be two of them."""
    gather = (
        "  %g = f32[16]{0} all-gather(%q), channel_id=1, replica_groups={{0,1}}, dimensions={0}"
    )
    fusions = ""
    for name, end in (
        ("fused.1", ', custom_call_target="AsyncCollectiveStart"'),
        ("async_collective_fusion.1", ', custom_call_target="Other"'),
        ("fused.2", ', custom_call_target="AsyncCollectiveDone"'),
    ):
        fusions += f"%{name} (q: f32[8]) -> f32[16] {{\n  %q = f32[8]{{0}} parameter(0)\n{gather}\n"
        fusions += f"  ROOT %c = f32[16]{{0}} custom-call(%g){end}\n}}\n\n"
    calls = "\n".join(
        f"  %f.{n} = f32[16]{{0}} fusion(%p), kind=kCustom, calls=%{name}"
        for n, name in enumerate(("fused.1", "async_collective_fusion.1", "fused.2"))
    )
    twice = "\n".join(
        f"  %r.{n} = f32[8]{{0}} all-reduce(%p), channel_id=1, replica_groups={{{{0,1}}}}"
        for n in range(2)
    )
    counts = totals(find(Program(fusions + _entry(f"{calls}\n{twice}")), 2))
    assert counts["all-gather"] == {"count": 1, "payload_bytes": 64, "wire_bytes": 32}
    assert counts["all-reduce"]["count"] == 2


def test_starts_and_ends_are_one_collective() -> None:
    lines = (
        "  %s = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), "
        "channel_id=1, source_target_pairs={{0,1},{1,0}}\n"
        "  %d = f32[8]{0} collective-permute-done(%s)"
    )
    assert totals(find(Program(_entry(lines)), 2)) == {
        "collective-permute": {"count": 1, "payload_bytes": 32, "wire_bytes": 32}
    }


def test_what_leaves_the_slice_is_apart() -> None:
    send = (
        "  %s = (f32[8]{0}, u32[], token[]) send(%p, %t), channel_id=4, is_host_transfer=true, "
        'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    assert totals(find(Program(_entry(send)), 32, slices=2)) == {
        "all-reduce between slices": {"count": 1, "payload_bytes": 32, "wire_bytes": 32}
    }


def _entry(lines: str) -> str:
    return f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  %p = f32[8]{{0}} parameter(0)\n{lines}\n}}\n"
