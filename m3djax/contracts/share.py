"""The split of the samples of an evaluation over processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of all samples that one process evaluates: some rows of every batch.

    Attributes:
      batch_size: rows of the batches of this process.
      process: number of this process.
      processes: number of processes.
    """

    batch_size: int
    process: int = 0
    processes: int = 1

    @property
    def rows(self) -> range:
        """Returns the rows of this process in a global batch."""
        return range(self.process * self.batch_size, (self.process + 1) * self.batch_size)

    def batches(self, count: int) -> Iterator[tuple[Int[np.ndarray, " b"], Bool[np.ndarray, " b"]]]:
        """Yields the sample numbers of this process, batch by batch.

        All batches have the same size, so that the program is compiled once.

        Args:
          count: number of samples.

        Yields:
          Sample numbers, and a mask that is True where a sample counts. The last batch is filled up
          with samples from the start, which do not count.
        """
        for start in range(0, count, self.batch_size * self.processes):
            numbers = start + np.array(self.rows)
            if numbers[0] < count:
                yield numbers % count, numbers < count
