"""Plans of the shipped configs, kept in docs/plans; `python -m configs.plans` renews them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.files import write_whole

if TYPE_CHECKING:
    from m3djax.plan.record import PlanRecord

FOLDER = Path("docs/plans")
_INTRODUCTION = """\
# Plans of full-size configs

Memory needs and speed bounds of each config on TPU slices. Each row is one compilation of the real
train step, or of the real generation loop, by the TPU's own compiler. No accelerator was used, and
nothing was run. `make plans` renews the rows whose config has changed; a test fails until then. To
make one plan by hand: `python run.py plan CONFIG --topology v5e:4x4`.

"""
_EXPLANATION = """
- **Memory** is the compiler's figure for one device: the largest sum of state, batch and
  temporaries at any time, plus the program. *Free* is the unused share of the memory that libtpu
  lets a program use (v5e: 15.75 of 16 GiB). The batch is that of one data x fsdp shard.
- **A step** of a config named `decode` is one iteration of the loop: one token of each answer. The
  HBM traffic before and after the loop is in the JSON (`once_bytes`).
- **Wire** is the number of bytes that a device receives in one step, by kind. It is read from the
  optimised program, and loops count with their trip count: (n - 1)/n of the array for a gather or a
  scatter, twice that for an all-reduce.
- **Bounds** are the times that matrix products, HBM and links alone need at their published speed.
  The largest one is the least time of a step. *Padded* counts products as the 128 x 128 (v6e:
  256 x 256) matrix unit computes them. HBM time is an estimate from the program's text, not a
  bound.
- **MFU, at most** is the model's own FLOPs divided by that least time and the peak. They are the
  FLOPs of the forward pass and of the gradients of the trained parameters: about 6 per weight and
  token, and 4 for frozen weights with adapters. Hidden patches of the encoder and recomputation do
  not count. The figure is a ceiling: norms, softmax, GELU and imperfect overlap take more time, so
  expect well below it.
- **Not claimed**: any measured speed, any behaviour of hosts, disks or networks, any accuracy.
"""


@dataclasses.dataclass(frozen=True)
class Shipped:
    """A full-size config and the slice that it is planned for.

    Attributes:
      config: file below configs/.
      topology: the slice, such as "v5e:4x4".
      overrides: flags of fields that differ from the file.
      slices: number of slices.
    """

    config: str
    topology: str
    overrides: tuple[str, ...] = ()
    slices: int = 1

    def load(self) -> Any:
        """Returns the config with its overrides."""
        import tyro

        from m3djax.config.files import load_config

        default = load_config(self.config)
        return tyro.cli(type(default), default=default, args=list(self.overrides))

    def hash(self) -> str:
        """Returns the fingerprint that an up-to-date plan has."""
        from m3djax.plan.record import config_hash
        from m3djax.plan.targets import target_of
        from m3djax.plan.topology import Topology

        return config_hash(target_of(self.load()), Topology(self.topology, self.slices))

    def make(self) -> PlanRecord:
        """Makes a new plan; takes minutes."""
        from m3djax.plan.command import plan
        from m3djax.plan.topology import Topology

        made = plan(self.load(), Topology(self.topology, self.slices))
        return {"config": self.config, "overrides": list(self.overrides), **made}


def read(folder: Path = FOLDER) -> dict[str, PlanRecord]:
    """Reads the stored plans, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def page(plans: Mapping[str, PlanRecord]) -> str:
    """Returns the Markdown page with a table of all plans."""
    head = (
        "plan",
        "parameters",
        "slice, mesh",
        "batch (per shard)",
        "memory GiB (free)",
        "wire MB",
        "compute / padded / HBM / links ms",
        "limited by",
        "MFU, at most (padded)",
    )
    rows = [head, ("---",) * len(head), *(_row(name, plan) for name, plan in plans.items())]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    versions = sorted({f"{k} {v}" for plan in plans.values() for k, v in plan["versions"].items()})
    return f"{_INTRODUCTION}{table}\nMade with {', '.join(versions)}.\n{_EXPLANATION}"


def _row(name: str, plan: PlanRecord) -> tuple[str, ...]:
    memory, batch, bounds = plan["memory"], plan["batch"], plan["bounds"]
    padded = plan["bounds_with_tile_padding"] or bounds
    used = (memory["peak"] + memory["program"]) / 2**30
    mesh = " x ".join(map(str, plan["mesh"].values()))
    times = [bounds["compute_ms"], padded["compute_ms"], bounds["hbm_ms"], bounds["links_ms"]]
    wire = ", ".join(
        f"{kind} {row['wire_bytes'] / 1e6:,.0f}"
        for kind, row in (plan["collectives"] or {}).items()
    )
    slices = f"{plan['slices']} x " if plan["slices"] > 1 else ""
    changed = f" `{' '.join(plan['overrides'])}`" if plan["overrides"] else ""
    return (
        f"[{name}]({name}.json): `{plan['config']}`{changed}",
        f"{sum(plan['parameters'].values()) / 1e6:.0f} M",
        f"{slices}{plan['topology']}, {mesh}",
        f"{batch['global']} ({batch['per_device']:g})",
        f"{used:.2f} ({memory['free_share']:.0%})",
        wire or "none",
        " / ".join("?" if time is None else f"{time:.1f}" for time in times),
        f"{bounds['limited_by']} (padded: {padded['limited_by']})",
        f"{bounds['mfu']:.2f} ({padded['mfu']:.2f})",
    )


def main(plans: Mapping[str, Shipped], names: Iterable[str]) -> None:
    """Makes the named plans, or else all plans whose config has changed; writes the page.

    Args:
      plans: all plans by name.
      names: plans to make; empty: those whose config has changed.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX discovers devices
    FOLDER.mkdir(parents=True, exist_ok=True)
    kept = read()
    stale = [name for name, each in plans.items() if kept.get(name, {}).get("hash") != each.hash()]
    for name in list(names) or stale:
        print(f"{name} ...", flush=True)
        made = json.dumps(plans[name].make(), indent=1)
        write_whole(FOLDER / f"{name}.json", f"{made}\n")
    for name in set(kept) - set(plans):
        (FOLDER / f"{name}.json").unlink()
    write_whole(FOLDER / "README.md", page(read()))
    print(f"{FOLDER}: {len(plans)} plans")
