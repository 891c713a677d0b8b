"""Benchmark of the memory of contrastive losses, forward and backward, by global batch.

    python benchmarks/contrastive.py [--json] [--topology v5e:16x16] [--batches 4096 32768 131072]

Nothing runs. Each loss is compiled ahead of time for an absent TPU slice (needs libtpu), or with
`--topology cpu` for 8 simulated devices. The result is the compiler's own figure: peak bytes per
device. It includes inputs and gradients, which are (B, 768) in float32, split over the devices. If
a program does not fit into HBM, the result is the size from the compiler's message.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import common
import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from m3djax.losses.contrastive import InfoNCE, SigmoidPairs
from m3djax.mesh import sharding

WIDTH = 768
ROWS = P(sharding.MESH_AXES["batch"])
Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def replicated(images: jax.Array, texts: jax.Array, ids: jax.Array) -> jax.Array:
    """Computes InfoNCE as M3D does: each device gathers all features and holds all logits."""

    def on_device(images: jax.Array, texts: jax.Array, ids: jax.Array) -> jax.Array:
        axes = sharding.MESH_AXES["batch"]
        images, texts = (jax.lax.all_gather(x, axes, tiled=True) for x in (images, texts))
        logits, labels = images @ texts.T / 0.07, jnp.arange(len(images))
        entropy = optax.softmax_cross_entropy_with_integer_labels
        total = entropy(logits, labels).sum() + entropy(logits.T, labels).sum()
        return jax.lax.pmean(total / 2, axes)

    return jax.shard_map(on_device, in_specs=(ROWS,) * 3, out_specs=P())(images, texts, ids)


def of(module: Any) -> Loss:
    """Returns the loss of one of our modules with its initial parameters."""
    params = module.init(jax.random.key(0), method="factor")

    def loss(images: jax.Array, texts: jax.Array, ids: jax.Array) -> jax.Array:
        return module.apply(params, images, texts, ids, jnp.ones(len(ids), bool)).total

    return loss


LOSSES: dict[str, Callable[[], Loss]] = {
    "InfoNCE, all logits on every device (M3D)": lambda: replicated,
    "InfoNCE, logits split over rows": lambda: of(InfoNCE()),
    "sigmoid, logits split over rows": lambda: of(SigmoidPairs(form="dense")),
    "sigmoid, ring": lambda: of(SigmoidPairs()),
}


def mesh_of(topology: str) -> Mesh:
    """Returns a mesh with all devices along the data axis, which the ring uses."""
    if topology == "cpu":
        jax.config.update("jax_num_cpu_devices", 8)
        return sharding.make_mesh((-1, 1, 1))
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return sharding.make_mesh((-1, 1, 1), list(devices))


def peak(loss: Loss, rows: int, mesh: Mesh) -> dict[str, Any]:
    """Compiles value and gradients; returns peak MiB per device, or the size that does not fit."""
    where = NamedSharding(mesh, ROWS)
    features = jax.ShapeDtypeStruct((rows, WIDTH), jnp.float32, sharding=where)
    ids = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=where)
    out = (NamedSharding(mesh, P()), (where, where))
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=out)
        try:
            memory = step.lower(features, features, ids).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            said = re.search(r"\(([\d.]+[KMGT])\) exceeds", str(error))
            return {"needs": said.group(1) if said else "size unknown"}
    if mesh.devices.flat[0].platform == "cpu":  # its compiler's peak leaves temporaries out
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes
        return {"peak_mib": (total + memory.temp_size_in_bytes) / 2**20}
    return {"peak_mib": memory.peak_memory_in_bytes / 2**20}


def main() -> None:
    """Compiles all losses and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 32768, 131072])
    options = parser.parse_args()
    mesh = mesh_of(options.topology)
    found = {
        name: {str(rows): peak(make(), rows, mesh) for rows in options.batches}
        for name, make in LOSSES.items()
    }
    results = {
        "machine": common.machine("jax", "jaxlib"),
        "topology": options.topology,
        "devices": mesh.size,
        "losses": found,
    }
    rows = [("peak MiB per device", *(f"B = {rows:,}" for rows in options.batches))]
    for name, sizes in found.items():
        cells = (
            f"{size['peak_mib']:,.{0 if size['peak_mib'] >= 10 else 1}f}"
            if "peak_mib" in size
            else f"does not fit ({size['needs']})"
            for size in sizes.values()
        )
        rows.append((name, *cells))
    common.show(results, options.json, rows)


if __name__ == "__main__":
    main()
