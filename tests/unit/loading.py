"""One process of several that load a checkpoint together; prints what the loading took.

python -m tests.unit.loading FOLDER ADDRESS PROCESSES NUMBER
"""

from __future__ import annotations

import json
import sys
import threading

import jax
import numpy as np

from m3djax.convert import llm_config, pretrained
from m3djax.mesh import sharding
from m3djax.params import flatten


def anonymous() -> int:
    """Bytes of this process that are not pages of files."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024


class Peak:
    """The largest number of bytes that was seen while it lasted, above those at its start."""

    def __enter__(self) -> Peak:
        self.bytes, self._start, self._over = 0, anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.bytes = max(self.bytes, anonymous() - self._start)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.bytes = max(self.bytes, anonymous() - self._start)


def main(folder: str, address: str, processes: int, number: int) -> None:
    """Loads and reports: peak, bytes of this process's parts, a sum to compare."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(address, processes, number)
    mesh = sharding.make_mesh((1, -1, 1))
    # What is imported and traced for the first time is not what is measured.
    pretrained.shapes(llm_config.decoder(llm_config.read_config(folder)))
    with Peak() as peak:
        loaded = pretrained.load(folder, mesh)
    leaves = flatten(loaded.params).values()
    parts = [shard.data for leaf in leaves for shard in leaf.addressable_shards]
    own = sum(part.nbytes for part in parts)
    total = sum(leaf.nbytes for leaf in leaves)
    check = sum(float(np.sum(np.asarray(part), dtype=np.float64)) for part in parts)
    print(json.dumps({"peak": peak.bytes, "own": own, "total": total, "check": check}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
