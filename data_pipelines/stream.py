"""Makes batches in advance, in threads or worker processes, with Grain."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import grain

Arrays = dict[str, np.ndarray]
"""The arrays of a sample or a batch by name."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The samples of selected rows of all batches, numbered consecutively.

    Attributes:
      samples: all samples; batch n has the `batch_size` samples from n x `batch_size` on.
      rows: the selected rows of each batch.
      batch_size: number of rows of a whole batch.
    """

    samples: grain.MapDataset
    rows: tuple[int, ...]
    batch_size: int

    def __call__(self, number: int) -> Arrays:
        """Returns the sample with this number among the samples of the selected rows."""
        batch, row = divmod(number, len(self.rows))
        return self.samples[batch * self.batch_size + self.rows[row]]


def batches(
    rows: Rows,
    start: int,
    end: int,
    stack: Callable[[Sequence[Arrays]], Arrays],
    workers: int,
    buffer: int,
) -> Generator[Arrays, None, None]:
    """Yields batches; close the generator to stop the threads or processes that make them.

    Args:
      rows: the samples.
      start: number of the first batch.
      end: number after the last batch.
      stack: turns a list of samples into a batch.
      workers: number of processes; 0 uses threads of this process.
      buffer: number of batches that each worker makes in advance.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])  # Grain reads absl flags and fails if they are not parsed
    count = len(rows.rows)
    dataset = grain.MapDataset.range(start * count, end * count).map(rows)
    dataset = dataset.batch(count, drop_remainder=True, batch_fn=stack)
    threads = 1 if workers else min(os.cpu_count() or 1, buffer)
    ahead = dataset.to_iter_dataset(grain.ReadOptions(threads, buffer))
    if workers:
        ahead = ahead.mp_prefetch(
            grain.MultiprocessingOptions(workers, per_worker_buffer_size=buffer),
            worker_init_fn=_outlive_stop_signals,
        )
    iterator = iter(ahead)
    try:
        yield from iterator
    finally:
        iterator.close()


def _outlive_stop_signals(_worker: int, _workers: int) -> None:
    """Ignores the stop signals of Slurm and ctrl-C, because the last step still needs its batch."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
