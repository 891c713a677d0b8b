"""How processes share the samples of an evaluation."""

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
      processes: how many there are.
    """

    batch_size: int
    process: int = 0
    processes: int = 1

    @property
    def rows(self) -> range:
        """Returns the rows of this process in a batch of all processes."""
        return range(self.process * self.batch_size, (self.process + 1) * self.batch_size)

    def batches(self, count: int) -> Iterator[tuple[Int[np.ndarray, " b"], Bool[np.ndarray, " b"]]]:
        """Yields the sample numbers of this process, batch by batch.

        All batches have one size, so that a single compilation serves all.

        Args:
          count: how many samples there are.

        Yields:
          Sample numbers, and which of them count: samples from the start fill up the last batch.
        """
        for start in range(0, count, self.batch_size * self.processes):
            numbers = start + np.array(self.rows)
            if numbers[0] < count:
                yield numbers % count, numbers < count
